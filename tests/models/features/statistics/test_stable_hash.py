"""Hashes that determine folds and buckets, and so must not change."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.models.features.statistics.stable_hash import stable_hashes
from tests.examples import examples

STORED_TEXT_HASHES = [0, 8777055843625058441, 10938623901924293678]
STORED_NUMBER_HASHES = [16294208416658607535, 16490336266968443936, 47939714376772075]


@settings(deadline=None, max_examples=examples(100))
@given(words=st.lists(st.text(max_size=20), min_size=1, max_size=20, unique=True), data=st.data())
def test_a_hash_depends_only_on_the_text(words, data):
    hashes = stable_hashes(pa.array(words))
    assert len(set(hashes.tolist())) == len(words)
    for position, word in enumerate(words):
        assert stable_hashes(pa.array([word]))[0] == hashes[position]
    start = data.draw(st.integers(0, len(words)))
    assert np.array_equal(stable_hashes(pa.array(words).slice(start)), hashes[start:])
    assert np.array_equal(stable_hashes(pa.array(words, pa.large_string())), hashes)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint16(), pa.int64(), pa.float64(), pa.float32()], ids=str)
def test_equal_numbers_of_any_type_have_equal_hashes(kind):
    assert np.array_equal(stable_hashes(pa.array([0, 1, 100], kind)), stable_hashes(pa.array([0, 1, 100])))


def test_hashes_have_not_changed():
    assert stable_hashes(pa.array(["", "a", "ä€"])).tolist() == STORED_TEXT_HASHES
    assert stable_hashes(pa.array([0, -1, 2**62]), 1).tolist() == STORED_NUMBER_HASHES


def test_salts_give_independent_and_uniform_buckets():
    keys = pa.array([f"row-{number}" for number in range(10_000)])
    first, second = stable_hashes(keys, 1) % np.uint64(10), stable_hashes(keys, 2) % np.uint64(10)
    assert 0.08 < (first == second).mean() < 0.12
    assert np.bincount(first.astype(int)).min() > 900
