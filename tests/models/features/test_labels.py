"""Labels of a regression: standardising, decoding, and target encoding."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import (
    ENCODED_LABEL,
    STATISTICS,
    Encoder,
    decode,
    encode,
    encode_labels,
    encode_rows,
    encoded_schema,
    fit,
    partial_statistics,
)
from bloomery.models.features.kinds.category import fold_hashes
from bloomery.models.features.kinds.target_encoding import exact_group_sums
from bloomery.models.features.statistics.moments import UNIT_BITS
from tests.examples import examples

NUM_FOLDS = 3
VALUES = st.floats(-1e6, 1e6) | st.integers(-1000, 1000).map(float)
LABELS = st.lists(VALUES, min_size=2, max_size=30).filter(lambda values: np.std(values) > 1e-6)
ROWS = st.lists(st.tuples(st.sampled_from(["a", "b", "c", None]), VALUES), min_size=6, max_size=30)


def features_of(**category: Any) -> Features:
    source = {"kind": "category", "columns": ["word"], **category}
    return Features.model_validate({"key": "id", "label": "y", "task": "regression", "inputs": [source]})


def fit_encoder(
    labels: Any, words: list[Any] | None = None, size: int = 10**6, **category: Any
) -> tuple[Encoder, pa.Table]:
    features = features_of(**category)
    table = pa.table({"id": range(len(labels)), "y": labels, "word": words or ["a"] * len(labels)})
    batches = table.to_batches(max_chunksize=size)
    return fit(features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, batches)]), table


@settings(deadline=None, max_examples=examples(60))
@given(labels=LABELS)
def test_decoding_inverts_standardising(labels):
    encoder, table = fit_encoder(labels)
    y = encode_labels(encoder, table["y"])
    assert y.type == pa.float32()
    standard = y.to_numpy()
    assert (standard.mean(), standard.std()) == pytest.approx((0, 1), abs=1e-4)
    decoded = decode(encoder, standard[:, None])
    assert decoded.dtype == np.float64
    assert decoded == pytest.approx(labels, abs=1e-6 * float(np.abs(labels).max()) + 1e-5 * float(np.std(labels)))
    assert encoder.classes == ()


@settings(deadline=None, max_examples=examples(30))
@given(labels=LABELS, order=st.randoms())
def test_the_label_units_are_independent_of_order_and_batches(labels, order):
    assert fit_encoder(order.sample(labels, len(labels)), size=1)[0].units == fit_encoder(labels)[0].units


@pytest.mark.parametrize("kind", [pa.int64(), pa.int16(), pa.float32(), pa.float64()], ids=str)
def test_labels_of_every_numeric_type_are_accepted(kind):
    encoder, table = fit_encoder(pa.array([1, 2, 3, 6], kind))
    assert encoder.units is not None
    assert (encoder.units.mean, encoder.units.deviation) == (3.0, pytest.approx(3.5**0.5))
    encoded = encode_rows(encoder, table)
    assert encoded.schema == encoded_schema(encoder, pa.int64())
    assert encoded[ENCODED_LABEL].to_pylist() == pytest.approx([(value - 3) / 3.5**0.5 for value in (1, 2, 3, 6)])


@pytest.mark.parametrize("labels", [[2.5, 2.5, 2.5], pa.array([], pa.float64())], ids=["constant", "none"])
def test_constant_labels_are_refused(labels):
    with pytest.raises(DataUnfit, match=r"the training split has (the label 2.5 in every row|no label)"):
        fit_encoder(labels)


@pytest.mark.parametrize("invalid", [None, float("nan"), float("inf")], ids=str)
def test_missing_or_infinite_labels_are_refused_in_fit_and_encode(invalid):
    labels = pa.array([1.0, invalid, 3.0])
    with pytest.raises(DataUnfit, match="of a regression"):
        fit_encoder(labels)
    encoder, _ = fit_encoder([1.0, 2.0])
    with pytest.raises(DataUnfit, match="of a regression"):
        encode_labels(encoder, labels)


def test_an_outlier_label_stays_finite():
    encoder, _ = fit_encoder([0.0, 1e-300])
    assert np.isfinite(encode_labels(encoder, pa.array([1e300])).to_numpy()).all()


def test_outputs_of_a_classification_cannot_be_decoded():
    features = Features.model_validate(
        {"key": "id", "label": "y", "inputs": [{"kind": "category", "columns": ["word"]}]}
    )
    table = pa.table({"id": [0, 1], "y": [0, 1], "word": ["a", "b"]})
    encoder = fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, table.to_batches())]
    )
    with pytest.raises(ValueError, match="only the outputs of a regression have units"):
        decode(encoder, np.zeros((2, 1), np.float32))


@settings(deadline=None, max_examples=examples(80))
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(allow_nan=False, allow_infinity=False)), max_size=20))
def test_group_sums_are_exact(pairs):
    groups = np.array([group for group, _ in pairs], np.int64)
    expected: dict[int, Fraction] = {}
    for group, value in pairs:
        expected[group] = expected.get(group, Fraction(0)) + Fraction(value)
    sums = exact_group_sums(groups, np.array([value for _, value in pairs], np.float64))
    assert {group: Fraction(total, 1 << UNIT_BITS) for group, total in sums.items()} == expected


def fit_target_encoder(rows: list[tuple[Any, float]], size: int = 10**6) -> tuple[Encoder, pa.Table]:
    words, labels = [word for word, _ in rows], [label for _, label in rows]
    return fit_encoder(labels, words, size, encoding="target", num_folds=NUM_FOLDS, smoothing=2.0)


@settings(deadline=None, max_examples=examples(40))
@given(rows=ROWS, data=st.data())
def test_regression_target_encoding_excludes_the_rows_own_label(rows, data):
    rows = [("a", 0.0), ("b", 1.0), *rows]
    row = data.draw(st.integers(2, len(rows) - 1))
    changed_rows = [*rows[:row], (rows[row][0], rows[row][1] + 1000), *rows[row + 1 :]]
    (before, table), (after, changed_table) = fit_target_encoder(rows), fit_target_encoder(changed_rows)
    fold = fold_hashes(table["id"]) % np.uint64(NUM_FOLDS)
    x, y = encode(before, table, is_training=True), encode(after, changed_table, is_training=True)
    assert x[fold == fold[row]].tobytes() == y[fold == fold[row]].tobytes()
    assert np.isfinite(x).all()


@settings(deadline=None, max_examples=examples(40))
@given(rows=ROWS, order=st.randoms(), size=st.integers(1, 5))
def test_regression_target_encoding_is_the_mean_label_shrunk_towards_0(rows, order, size):
    rows = [("a", 0.0), ("b", 1.0), *rows]
    encoder, table = fit_target_encoder(rows)
    labels, words = np.array([label for _, label in rows]), np.array([str(word) for word, _ in rows])
    folds = fold_hashes(table["id"]) % np.uint64(NUM_FOLDS)

    def expected_encoding(word: str, is_used: np.ndarray) -> float:
        spread = labels[is_used].std() if is_used.any() else 0.0
        own_labels = labels[is_used & (words == word)]
        mean = labels[is_used].mean() if is_used.any() else 0.0
        return float((own_labels - mean).sum() / (spread or 1.0) / (len(own_labels) + 2.0))

    is_any_row = np.full(len(rows), True)
    assert encode(encoder, table)[:, 0] == pytest.approx(
        [expected_encoding(word, is_any_row) for word in words], abs=1e-3
    )
    x = encode(encoder, table, is_training=True)
    assert x[:, 0] == pytest.approx(
        [expected_encoding(word, folds != fold) for word, fold in zip(words, folds, strict=True)], abs=1e-3
    )
    assert encode(encoder, pa.table({"word": ["never seen"]})).tolist() == [[0.0]]
    shuffled_positions = order.sample(range(len(rows)), len(rows))
    shuffled = table.take(pa.array(shuffled_positions))
    refitted = fit(
        encoder.features,
        [summary[STATISTICS][0].as_py() for summary in partial_statistics(encoder.features, shuffled.to_batches(size))],
    )
    assert refitted == encoder
    assert Encoder.model_validate_json(encoder.model_dump_json()) == encoder


@pytest.mark.parametrize("encoding", ["one_hot", "target"])
def test_the_classes_of_a_boolean_label_are_false_and_true(encoding):
    source = {"kind": "category", "columns": ["word"], "encoding": encoding}
    features = Features.model_validate({"key": "id", "label": "y", "inputs": [source]})
    rows = pa.table({"id": range(60), "y": [n % 3 == 0 for n in range(60)], "word": ["ab"[n % 2] for n in range(60)]})
    encoder = fit(features, [row[STATISTICS][0].as_py() for row in partial_statistics(features, rows.to_batches())])
    assert encoder.classes == ("false", "true")
    assert encode_labels(encoder, rows["y"]).to_pylist() == [int(n % 3 == 0) for n in range(60)]
