"""SHAP values of a row, and how they map to columns and locations within them."""

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
from tests.examples import examples

FEW, MANY = 100, 4096


def predict_interacting(x: np.ndarray) -> np.ndarray:
    """An output with interactions between positions."""
    flat = x.reshape(len(x), -1).astype(np.float64)
    return np.tanh(flat[:, 0] * flat[:, 1] + flat[:, -1]) + flat.mean(axis=1) ** 2


def shapley_by_definition(x: np.ndarray, background: np.ndarray, group_index: np.ndarray) -> np.ndarray:
    num_groups = int(group_index.max()) + 1

    def value(subset: set[int]) -> float:
        return float(predict_interacting(np.where(np.isin(group_index, list(subset)), x, background)).mean())

    shap_values = np.zeros(num_groups)
    for group in range(num_groups):
        other_groups = [candidate for candidate in range(num_groups) if candidate != group]
        for size in range(num_groups):
            share = math.factorial(size) * math.factorial(num_groups - size - 1) / math.factorial(num_groups)
            for subset in itertools.combinations(other_groups, size):
                shap_values[group] += share * (value({*subset, group}) - value(set(subset)))
    return shap_values


@settings(deadline=None, max_examples=examples(20))
@given(
    seed=st.integers(0, 1000),
    num_groups=st.integers(1, 5),
    num_background=st.integers(1, 4),
    shape=st.sampled_from([(6,), (2, 3), (1, 2, 4)]),
)
def test_few_groups_have_exact_shapley_values(seed, num_groups, num_background, shape) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=shape).astype(np.float32)
    background = random.normal(size=(num_background, *shape)).astype(np.float32)
    group_index = np.arange(x.size).reshape(shape) % num_groups
    shap_values = compute_shap_values(predict_interacting, x, background, group_index, max_evaluations=MANY)
    assert shap_values.is_exact
    assert shap_values.values == pytest.approx(shapley_by_definition(x, background, group_index), abs=1e-9)
    assert shap_values.base == pytest.approx(predict_interacting(background).mean())
    assert shap_values.output == pytest.approx(predict_interacting(x[None])[0])


def test_sampled_orders_approximate_the_shapley_values_and_sum_up() -> None:
    random = np.random.default_rng(3)
    x, background = random.normal(size=10).astype(np.float32), random.normal(size=(4, 10)).astype(np.float32)
    group_index = np.arange(10)
    exact = compute_shap_values(predict_interacting, x, background, group_index, max_evaluations=2**10 * 4)
    errors = []
    for num_orders in (1, 40):
        shap_values = compute_shap_values(
            predict_interacting, x, background, group_index, max_evaluations=21 * 4 * num_orders
        )
        assert (exact.is_exact, shap_values.is_exact) == (True, False)
        assert shap_values.values.sum() == pytest.approx(shap_values.output - shap_values.base)
        assert (shap_values.base, shap_values.output) == (pytest.approx(exact.base), pytest.approx(exact.output))
        errors.append(np.abs(shap_values.values - exact.values).max())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 0.1


def test_the_evaluations_are_limited() -> None:
    batch_sizes: list[int] = []

    def predict(x: np.ndarray) -> np.ndarray:
        batch_sizes.append(len(x))
        return predict_interacting(x)

    x, group_index = np.ones(40, np.float32), np.arange(40)
    background = np.zeros((16, 40), np.float32)
    compute_shap_values(predict, x, background, group_index, max_evaluations=5_000)
    assert 16 * 81 <= sum(batch_sizes) <= 5_000
    assert max(batch_sizes) <= 256


def test_a_group_that_equals_the_background_has_no_value_and_no_cost() -> None:
    batch_sizes: list[int] = []

    def predict(x: np.ndarray) -> np.ndarray:
        batch_sizes.append(len(x))
        return predict_interacting(x)

    x, background = np.arange(40, dtype=np.float32), np.arange(40, dtype=np.float32)[None].repeat(2, axis=0)
    background[1, 5] = 0
    shap_values = compute_shap_values(predict, x, background, np.arange(40), max_evaluations=MANY)
    assert (np.flatnonzero(shap_values.values).tolist(), shap_values.is_exact, sum(batch_sizes)) == ([5], True, 4)
    constant = compute_shap_values(predict, x, x[None], np.arange(40), max_evaluations=MANY)
    assert (constant.values.any(), constant.base, constant.output) == (
        False,
        predict_interacting(x[None])[0],
        predict_interacting(x[None])[0],
    )


def test_the_background_is_as_large_as_one_order_of_groups_allows() -> None:
    sample, flat = np.arange(16, dtype=np.float32)[:, None].repeat(3, axis=1), Layout(kind="flat", shape=(3,))
    assert len(select_background(flat, sample[0], sample, num_groups=3, max_evaluations=8192)) == 16
    half = select_background(flat, sample[0], sample, num_groups=500, max_evaluations=8192)
    assert half[:, 0].tolist() == [0, 2, 4, 6, 8, 10, 12, 15]
    assert len(select_background(flat, sample[0], sample, num_groups=5000, max_evaluations=8192)) == 1


def test_the_background_of_text_is_padding_and_that_of_padded_steps_is_their_mean() -> None:
    tokens = Layout(kind="tokens", shape=(4,), num_tokens=300)
    sample = np.ones((3, 4), np.float32)
    assert select_background(tokens, sample[0], sample, num_groups=4, max_evaluations=100).tolist() == [[0, 0, 0, 0]]
    padded = Layout(kind="sequence", shape=(3, 2), is_padded=True)
    steps = np.array([[[2, 1], [4, 1], [0, 0]], [[6, 1], [0, 0], [0, 0]]], np.float32)
    background = select_background(padded, steps[0], steps, num_groups=3, max_evaluations=100)
    assert background.tolist() == [[[4, 1], [4, 1], [0, 0]]]


def fit_encoder(source: dict[str, Any], **columns: Any) -> tuple[Encoder, pa.Table]:
    rows = pa.table({"id": range(4), "label": ["a", "b", "a", "b"], **columns})
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [source]})
    return fit(features, next(iter(partial_statistics(features, rows.to_batches())))["statistics"].to_pylist()), rows


def attribute(encoder: Encoder, rows: pa.Table, position: int = 0) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The columns and locations of a row whose groups have the SHAP values 1, 2, ..."""
    x = encode(encoder, rows)[position]
    groups = group_row(encoder, x)
    values_G = np.arange(1.0, groups.group_of.max() + 2)
    columns, pieces = sum_by_column(encoder, groups, values_G, x), locate_groups(encoder, groups, values_G, x)
    assert sum(columns.values()) == pytest.approx(values_G.sum())
    return columns, pieces


def test_patches_of_an_image_are_in_pixels_as_sent() -> None:
    pixels = np.random.default_rng(0).integers(0, 16, (4, 24 * 12)).tolist()
    source = {"kind": "image", "column": "scan", "shape": [1, 24, 12], "resize": [12, 4]}
    columns, pieces = attribute(*fit_encoder(source, scan=pixels))
    assert columns == {"scan": sum(range(1, 6 * 4 + 1))}
    assert pieces[0] == {"rows": [0, 4], "columns": [0, 3], "contribution": 1.0}
    assert pieces[-1] == {"rows": [20, 24], "columns": [9, 12], "contribution": 24.0}


def test_patches_of_a_sound_are_in_bands_and_seconds() -> None:
    source = {"kind": "audio", "column": "clip", "sample_rate": 1000, "duration_s": 0.4, "num_mels": 8}
    columns, pieces = attribute(*fit_encoder(source, clip=np.random.default_rng(0).normal(size=(4, 400)).tolist()))
    assert list(columns) == ["clip"]
    assert pieces[0] == {"bands": [0, 1], "seconds": [0.0, 0.064], "contribution": 1.0}
    assert pieces[-1]["bands"] == [7, 8]
    assert pieces[-1]["seconds"][1] == pytest.approx(0.4, abs=0.016)


def test_windows_are_located_by_column_and_step() -> None:
    windows = np.random.default_rng(0).normal(size=(2, 4, 3)).tolist()
    source = {"kind": "series", "columns": ["heat", "wind"], "time": "hour", "length": 3, "missing": "zero"}
    encoder, rows = fit_encoder({**source, "indicator": True}, hour=range(4), heat=windows[0], wind=windows[1])
    columns, pieces = attribute(encoder, rows)
    assert columns == {"heat": 1 + 3 + 5, "wind": 2 + 4 + 6}
    assert pieces[2] == {"column": "heat", "steps": [1, 2], "contribution": 3.0}


def test_steps_in_wide_columns_have_values_by_column() -> None:
    names = [[f"x{step}", f"y{step}"] for step in range(1, 4)]
    values = {name: [1.0, 2.0, 3.0, 4.0] for step in names for name in step}
    columns, pieces = attribute(*fit_encoder({"kind": "sequence", "columns": names}, **values))
    assert columns == {"x1": 1, "y1": 2, "x2": 3, "y2": 4, "x3": 5, "y3": 6}
    assert pieces == []


def test_wide_columns_in_one_group_share_its_value() -> None:
    names = [[f"x{step}"] for step in range(1, 201)]
    columns, _ = attribute(
        *fit_encoder({"kind": "sequence", "columns": names}, **{column: [1.0, 2, 3, 4] for (column,) in names})
    )
    assert [columns[name] for name in ("x1", "x2", "x3", "x4", "x200")] == [0.5, 0.5, 1.0, 1.0, 50.0]


def test_an_array_of_steps_is_located_by_step() -> None:
    steps = [[1.0, 2, 3, 4], [1.0, 2], [5.0, 6], [7.0, 8]]
    columns, pieces = attribute(*fit_encoder({"kind": "sequence", "column": "way", "length": 2, "width": 2}, way=steps))
    assert list(columns) == ["way"]
    assert pieces[1] == {"value": 1, "steps": [0, 1], "contribution": 2.0}


@pytest.mark.parametrize("length", [8, 200])
def test_a_text_is_located_by_its_words(length: int) -> None:
    texts = ["the cat sat", "a dog", "", " ".join(["cat", "dog"] * 60)]
    source = {"kind": "text", "column": "said", "length": length, "tokenizer": "words", "vocabulary_size": 50}
    encoder, rows = fit_encoder({**source, "missing": "empty"}, said=texts)
    _, pieces = attribute(encoder, rows)
    assert pieces == [
        {"text": f" {word}", "contribution": position} for position, word in enumerate(texts[0].split(), 1)
    ]
    _, empty_pieces = attribute(encoder, rows, position=2)
    assert [piece["text"] for piece in empty_pieces] == [""]
    _, long_pieces = attribute(encoder, rows, position=3)
    assert len(long_pieces) == min(length, 60)
    assert "".join(piece["text"] for piece in long_pieces).split() == texts[3].split()[:length]
