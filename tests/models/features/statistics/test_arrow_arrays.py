"""Lists of equal and unequal lengths; more values than an array of lists can have are refused."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.models.features.statistics.arrow_arrays import list_array, list_offsets


def test_rows_become_lists():
    values = np.arange(12, dtype=np.float32).reshape(4, 3)
    assert list_array(values).to_pylist() == values.tolist()
    assert list_array(values[:, ::2]).to_pylist() == values[:, ::2].tolist()
    assert list_array(values[:0]).to_pylist() == []
    assert list_offsets([2, 0, 3]).to_pylist() == [0, 2, 2, 5]


@pytest.mark.parametrize("lengths", [[2**30, 2**30], np.full(14_267, 3 * 224 * 224, np.int32)], ids=["two", "images"])
def test_offsets_beyond_32_bits_are_refused(lengths):
    with pytest.raises(ValueError, match=r"lists have 2,147,\d+,\d+ values together.* pass fewer rows"):
        list_offsets(lengths)
    assert list_offsets(lengths[:-1])[-1].as_py() > 0
