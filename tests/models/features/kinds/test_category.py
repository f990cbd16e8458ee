"""Categories: one-hot, index, hash and target encoding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, fit, partial_statistics
from bloomery.models.features.kinds import category
from bloomery.models.features.kinds.category import fold_hashes
from tests.examples import examples


def fit_encoder(words: list[Any], labels: list[int] | None = None, **settings: Any) -> tuple[Encoder, pa.Table]:
    source = {"kind": "category", "columns": ["a"], **settings}
    features = Features.model_validate({"key": "id", "label": "y", "inputs": [source]})
    labels = labels or [row % 2 for row in range(len(words))]
    table = pa.table({"id": range(len(words)), "y": labels, "a": words})
    return fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, table.to_batches())]
    ), table


def encode_values(encoder: Encoder, words: list[Any]) -> list[list[float]]:
    return encode(encoder, pa.table({"a": words})).tolist()


def test_one_hot_has_a_position_for_missing_for_other_and_for_each_category():
    encoder, _ = fit_encoder(["b", "a", None, "b"])
    assert encode_values(encoder, ["a", "b", None, "c"]) == [[0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("words", [["b", "a", "c", "b"], [7, 3, 9, 7]])
def test_an_index_is_the_position_among_sorted_categories(words):
    encoder, _ = fit_encoder(words, encoding="index")
    assert encode_values(encoder, sorted(set(words))) == [[2], [3], [4]]


def test_rare_categories_and_those_beyond_the_maximum_become_other():
    words = ["a"] * 5 + ["b"] * 4 + ["c"] * 4 + ["d"]
    assert encode_values(fit_encoder(words, encoding="index", min_count=2)[0], list("abcd")) == [[2], [3], [4], [1]]
    assert encode_values(fit_encoder(words, encoding="index", max_categories=2)[0], list("abcd")) == [
        [2],
        [3],
        [1],
        [1],
    ]


@settings(deadline=None, max_examples=examples(20))
@given(st.lists(st.none() | st.integers(0, 300), min_size=1, max_size=400))
def test_lookup_of_many_values_equals_lookup_of_few(codes):
    encoder, _ = fit_encoder([*range(250), *range(100)], encoding="index", max_categories=150)
    assert encode_values(encoder, pa.array(codes, pa.int64())) == [
        row for code in codes for row in encode_values(encoder, pa.array([code], pa.int64()))
    ]


def test_unknown_refuse_rejects_unknown_categories_but_not_rare_ones():
    encoder, table = fit_encoder(["a", "a", "b"], encoding="index", min_count=2, unknown="refuse")
    assert encode(encoder, table).tolist() == [[2], [2], [1]]
    with pytest.raises(DataUnfit, match="column a has the value 'c', which is not in the training split"):
        encode_values(encoder, ["a", "c"])
    with pytest.raises(DataUnfit, match="'c'"):
        encode_values(encoder, ["a", "b", "c"] * 50)


def test_hash_buckets_do_not_depend_on_the_batch():
    encoder, _ = fit_encoder(["a"] * 2, encoding="hash", num_buckets=5)
    words = [None, *(f"word {number}" for number in range(200))]
    x = np.array(encode_values(encoder, words))
    assert (x.sum(axis=1) == 1).all()
    assert x[0].tolist() == [1, 0, 0, 0, 0, 0]
    assert x[1:].sum(axis=0)[1:].min() > 20
    assert [np.array(encode_values(encoder, [word]))[0].tolist() for word in words] == x.tolist()


def test_too_many_categories_are_refused_for_any_batches(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(category, "MAX_LISTED_CATEGORIES", 10)
    with pytest.raises(DataUnfit, match="column a has more than 10 different values"):
        fit_encoder(list(range(11)))
    encoder, table = fit_encoder(list(range(10)))
    features = encoder.features
    parts = [
        next(partial_statistics(features, table.slice(start, 5).to_batches()))[STATISTICS][0].as_py()
        for start in (0, 5)
    ]
    assert fit(features, parts) == encoder
    larger_table = table.set_column(2, "a", pa.array(range(5, 15)))
    (summary,) = partial_statistics(features, larger_table.to_batches())
    with pytest.raises(DataUnfit, match="encoding: hash"):
        fit(features, [*parts, summary[STATISTICS][0].as_py()])


WORDS = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.integers(0, 2)), min_size=6, max_size=40)


@settings(deadline=None, max_examples=examples(60))
@given(rows=WORDS, data=st.data())
def test_target_encoding_of_a_training_row_excludes_its_own_label(rows, data):
    words, labels = [word for word, _ in rows], [label for _, label in rows]
    labels[:3] = [0, 1, 2]
    row = data.draw(st.integers(3, len(rows) - 1))
    changed_labels = [*labels[:row], (labels[row] + 1) % 3, *labels[row + 1 :]]
    before, table = fit_encoder(words, labels, encoding="target", num_folds=3)
    after, changed_table = fit_encoder(words, changed_labels, encoding="target", num_folds=3)
    x, y = encode(before, table, is_training=True), encode(after, changed_table, is_training=True)
    fold = fold_hashes(table["id"]) % np.uint64(3)
    assert np.array_equal(x[row], y[row])
    assert np.array_equal(x[fold == fold[row]], y[fold == fold[row]])


def test_target_encoding_is_the_class_fraction_shrunk_towards_the_prior():
    words, labels = ["a"] * 8 + ["b"] * 2, [0, 0, 1, 1, 1, 1, 2, 2, 0, 1]
    encoder, table = fit_encoder(words, labels, encoding="target", smoothing=2.0, num_folds=4)
    prior = np.array([5, 2]) / 10
    assert encode_values(encoder, ["a", "b", "never seen"]) == [
        pytest.approx((np.array([4, 2]) + 2 * prior) / 10),
        pytest.approx((np.array([1, 0]) + 2 * prior) / 4),
        pytest.approx(prior),
    ]
    folds = (fold_hashes(table["id"]) % np.uint64(4)).tolist()
    x = encode(encoder, table, is_training=True)
    for row, fold in enumerate(folds):
        other_rows = [position for position in range(10) if folds[position] != fold]
        same_category = [position for position in other_rows if words[position] == words[row]]
        share = np.array([[labels[position] == k for k in (1, 2)] for position in other_rows]).mean(axis=0)
        class_counts = (
            np.array([[labels[position] == k for k in (1, 2)] for position in same_category]).reshape(-1, 2).sum(axis=0)
        )
        assert x[row] == pytest.approx((class_counts + 2 * share) / (len(same_category) + 2))
