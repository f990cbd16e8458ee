"""What each unit of a served row adds: the figures, and how columns and their pieces are told of."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.explainability.raw_columns import group_row, locate_groups, sum_by_column
from bloomery.models.explainability.shapley import compute_shap_values, select_background
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder, encode, fit, partial_statistics

FEW, MANY = 100, 4096


def bent(x: np.ndarray) -> np.ndarray:
    """An answer in which positions work together."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return np.tanh(flat[:, 0] * flat[:, 1] + flat[:, -1]) + flat.mean(axis=1) ** 2


def by_definition(x: np.ndarray, background: np.ndarray, of: np.ndarray) -> np.ndarray:
    num_units = int(of.max()) + 1

    def value(known: set[int]) -> float:
        return float(bent(np.where(np.isin(of, list(known)), x, background)).mean())

    found = np.zeros(num_units)
    for unit in range(num_units):
        others = [other for other in range(num_units) if other != unit]
        for size in range(num_units):
            share = math.factorial(size) * math.factorial(num_units - size - 1) / math.factorial(num_units)
            for known in itertools.combinations(others, size):
                found[unit] += share * (value({*known, unit}) - value(set(known)))
    return found


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    num_units=st.integers(1, 5),
    num_behind=st.integers(1, 4),
    shape=st.sampled_from([(6,), (2, 3), (1, 2, 4)]),
)
def test_few_units_have_their_shapley_values(seed, num_units, num_behind, shape) -> None:
    drawn = np.random.default_rng(seed)
    x = drawn.normal(size=shape).astype(np.float32)
    background = drawn.normal(size=(num_behind, *shape)).astype(np.float32)
    of = np.arange(x.size).reshape(shape) % num_units
    found = compute_shap_values(bent, x, background, of, most_rows=MANY)
    assert found.is_exact
    assert found.values == pytest.approx(by_definition(x, background, of), abs=1e-9)
    assert found.base == pytest.approx(bent(background).mean())
    assert found.answer == pytest.approx(bent(x[None])[0])


def test_drawn_orders_come_near_the_shapley_values_and_add_up() -> None:
    drawn = np.random.default_rng(3)
    x, background = drawn.normal(size=10).astype(np.float32), drawn.normal(size=(4, 10)).astype(np.float32)
    of = np.arange(10)
    exact = compute_shap_values(bent, x, background, of, most_rows=2**10 * 4)
    errors = []
    for num_orders in (1, 40):
        found = compute_shap_values(bent, x, background, of, most_rows=21 * 4 * num_orders)
        assert (exact.is_exact, found.is_exact) == (True, False)
        assert found.values.sum() == pytest.approx(found.answer - found.base)
        assert (found.base, found.answer) == (pytest.approx(exact.base), pytest.approx(exact.answer))
        errors.append(np.abs(found.values - exact.values).max())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1


def test_the_network_is_asked_no_more_rows_than_were_allowed() -> None:
    num_asked: list[int] = []

    def answers(x: np.ndarray) -> np.ndarray:
        num_asked.append(len(x))
        return bent(x)

    x, of = np.ones(40, np.float32), np.arange(40)
    background = np.zeros((16, 40), np.float32)
    compute_shap_values(answers, x, background, of, most_rows=5_000)
    assert 16 * 81 <= sum(num_asked) <= 5_000
    assert max(num_asked) <= 256


def test_a_unit_that_is_as_in_the_background_adds_nothing_and_costs_nothing() -> None:
    num_asked: list[int] = []

    def answers(x: np.ndarray) -> np.ndarray:
        num_asked.append(len(x))
        return bent(x)

    x, background = np.arange(40, dtype=np.float32), np.arange(40, dtype=np.float32)[None].repeat(2, axis=0)
    background[1, 5] = 0
    found = compute_shap_values(answers, x, background, np.arange(40), most_rows=MANY)
    assert (np.flatnonzero(found.values).tolist(), found.is_exact, sum(num_asked)) == ([5], True, 4)
    nothing = compute_shap_values(answers, x, x[None], np.arange(40), most_rows=MANY)
    assert (nothing.values.any(), nothing.base, nothing.answer) == (False, bent(x[None])[0], bent(x[None])[0])


def test_the_background_is_as_large_as_one_order_of_units_allows() -> None:
    sample, flat = np.arange(16, dtype=np.float32)[:, None].repeat(3, axis=1), Layout(kind="flat", shape=(3,))
    assert len(select_background(flat, sample[0], sample, num_units=3, most_rows=8192)) == 16
    some = select_background(flat, sample[0], sample, num_units=500, most_rows=8192)
    assert some[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    assert len(select_background(flat, sample[0], sample, num_units=5000, most_rows=8192)) == 1


def test_text_is_compared_with_padding_and_a_sequence_of_any_length_with_the_mean_step() -> None:
    tokens = Layout(kind="tokens", shape=(4,), num_tokens=300)
    sample = np.ones((3, 4), np.float32)
    assert select_background(tokens, sample[0], sample, num_units=4, most_rows=100).tolist() == [[0, 0, 0, 0]]
    padded = Layout(kind="sequence", shape=(3, 2), is_padded=True)
    steps = np.array([[[2, 1], [4, 1], [0, 0]], [[6, 1], [0, 0], [0, 0]]], np.float32)
    still = select_background(padded, steps[0], steps, num_units=3, most_rows=100)
    assert still.tolist() == [[[4, 1], [4, 1], [0, 0]]]


def fitted(source: dict[str, Any], **columns: Any) -> tuple[Encoder, pa.Table]:
    rows = pa.table({"id": range(4), "label": ["a", "b", "a", "b"], **columns})
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [source]})
    return fit(features, next(iter(partial_statistics(features, rows.to_batches())))["statistics"].to_pylist()), rows


def told(encoder: Encoder, rows: pa.Table, place: int = 0) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """What is told of columns and pieces, where every unit adds its own number, from 1."""
    x = encode(encoder, rows)[place]
    units = group_row(encoder, x)
    values_U = np.arange(1.0, units.of.max() + 2)
    columns, pieces = sum_by_column(encoder, units, values_U), locate_groups(encoder, units, values_U, x)
    assert sum(columns.values()) == pytest.approx(values_U.sum())
    return columns, pieces


def test_an_image_is_told_in_pixels_as_they_were_sent() -> None:
    pixels = np.random.default_rng(0).integers(0, 16, (4, 24 * 12)).tolist()
    source = {"kind": "image", "column": "scan", "shape": [1, 24, 12], "resize": [12, 4]}
    columns, pieces = told(*fitted(source, scan=pixels))
    assert columns == {"scan": sum(range(1, 6 * 4 + 1))}
    assert pieces[0] == {"rows": [0, 4], "columns": [0, 3], "contribution": 1.0}
    assert pieces[-1] == {"rows": [20, 24], "columns": [9, 12], "contribution": 24.0}


def test_a_sound_is_told_in_bands_and_seconds() -> None:
    source = {"kind": "audio", "column": "clip", "sample_rate": 1000, "duration_s": 0.4, "num_mels": 8}
    columns, pieces = told(*fitted(source, clip=np.random.default_rng(0).normal(size=(4, 400)).tolist()))
    assert list(columns) == ["clip"]
    assert pieces[0] == {"bands": [0, 1], "seconds": [0.0, 0.064], "contribution": 1.0}
    assert pieces[-1]["bands"] == [7, 8]
    assert pieces[-1]["seconds"][1] == pytest.approx(0.4, abs=0.016)


def test_windows_are_told_by_column_and_step() -> None:
    windows = np.random.default_rng(0).normal(size=(2, 4, 3)).tolist()
    source = {"kind": "series", "columns": ["heat", "wind"], "time": "hour", "length": 3, "missing": "zero"}
    encoder, rows = fitted({**source, "indicator": True}, hour=range(4), heat=windows[0], wind=windows[1])
    columns, pieces = told(encoder, rows)
    assert columns == {"heat": 1 + 3 + 5, "wind": 2 + 4 + 6}
    assert pieces[2] == {"column": "heat", "steps": [1, 2], "contribution": 3.0}


def test_steps_in_wide_columns_are_told_by_column() -> None:
    names = [[f"x{step}", f"y{step}"] for step in range(1, 4)]
    values = {name: [1.0, 2.0, 3.0, 4.0] for step in names for name in step}
    columns, pieces = told(*fitted({"kind": "sequence", "columns": names}, **values))
    assert columns == {"x1": 1, "y1": 2, "x2": 3, "y2": 4, "x3": 5, "y3": 6}
    assert pieces == []


def test_wide_columns_that_are_weighed_together_have_equal_shares() -> None:
    names = [[f"x{step}"] for step in range(1, 201)]
    columns, _ = told(*fitted({"kind": "sequence", "columns": names}, **{one: [1.0, 2, 3, 4] for (one,) in names}))
    assert [columns[name] for name in ("x1", "x2", "x3", "x4", "x200")] == [0.5, 0.5, 1.0, 1.0, 50.0]


def test_an_array_of_steps_is_told_by_step() -> None:
    way = [[1.0, 2, 3, 4], [1.0, 2], [5.0, 6], [7.0, 8]]
    columns, pieces = told(*fitted({"kind": "sequence", "column": "way", "length": 2, "width": 2}, way=way))
    assert list(columns) == ["way"]
    assert pieces[1] == {"value": 1, "steps": [0, 1], "contribution": 2.0}


@pytest.mark.parametrize("length", [8, 200])
def test_a_text_is_told_by_its_words(length: int) -> None:
    texts = ["the cat sat", "a dog", "", " ".join(["cat", "dog"] * 60)]
    source = {"kind": "text", "column": "said", "length": length, "tokenizer": "words", "vocabulary_size": 50}
    encoder, rows = fitted({**source, "missing": "empty"}, said=texts)
    _, pieces = told(encoder, rows)
    assert pieces == [{"text": f" {word}", "contribution": place} for place, word in enumerate(texts[0].split(), 1)]
    _, of_nothing = told(encoder, rows, place=2)
    assert [piece["text"] for piece in of_nothing] == [""]
    _, long = told(encoder, rows, place=3)
    assert len(long) == min(length, 60)
    assert "".join(piece["text"] for piece in long).split() == texts[3].split()[:length]
