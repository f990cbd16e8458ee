"""A row mask is a set of positions."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.tasks.validate.row_mask import RowMask


@settings(deadline=None)
@given(num=st.integers(0, 100), data=st.data())
def test_a_row_mask_is_a_set_of_positions(num, data):
    positions = st.lists(st.integers(0, num - 1), unique=True) if num else st.just([])
    first, second = data.draw(positions), data.draw(positions)
    mask, second_mask = RowMask(num), RowMask(num)
    mask.add(np.array(first, np.int64))
    second_mask.add(np.array(second, np.int64))
    assert mask.num_set == len(first)
    mask.merge(second_mask)
    union = set(first) | set(second)
    assert mask.num_set == len(union)
    start = data.draw(st.integers(0, num))
    stop = data.draw(st.integers(start, num))
    assert mask.between(start, stop - start).tolist() == [row in union for row in range(start, stop)]
