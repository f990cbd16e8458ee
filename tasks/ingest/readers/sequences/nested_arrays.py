"""Arrays of arrays, such as the steps of a sequence with several values each, as one array of numbers."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.models.features.statistics.arrow_arrays import list_offsets
from bloomery.tasks.ingest.readers.base import equal_lists


class FlatArrays(NamedTuple):
    """Arrays without inner arrays; `sizes` counts the lengths of the inner arrays by depth, from the outside in."""

    values: pa.Array
    sizes: tuple[Counter[int], ...]


def nesting_depth(arrow_type: pa.DataType) -> int:
    """Returns how many arrays are inside each other: 1 for an array of numbers. Objects of numbers count as arrays."""
    depth = 0
    while _is_array(arrow_type):
        arrow_type, depth = arrow_type.value_type, depth + 1
    return depth + (depth > 0 and _is_step(arrow_type))


def _is_array(arrow_type: pa.DataType) -> bool:
    return bool(
        pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type)
    )


def _is_step(arrow_type: pa.DataType) -> bool:
    """Whether values are objects of numbers."""
    return pa.types.is_struct(arrow_type) and all(
        pa.types.is_integer(field.type) or pa.types.is_floating(field.type) for field in arrow_type
    )


def flat_type(arrow_type: pa.DataType) -> pa.DataType:
    """Returns the type of the arrays without inner arrays."""
    while nesting_depth(arrow_type) > 1:
        inner = arrow_type.value_type
        arrow_type = pa.list_(_step_type(inner) if _is_step(inner) else inner.value_type)
    return arrow_type


def _step_type(arrow_type: pa.DataType) -> pa.DataType:
    """Returns the type of all values of an object of numbers."""
    is_whole = all(pa.types.is_integer(field.type) for field in arrow_type)
    return pa.int64() if is_whole else pa.float64()


def flatten_arrays(values: pa.Array) -> FlatArrays:
    """Returns each array with the elements of its inner arrays, in their order. An inner null makes the array null."""
    sizes = []
    while nesting_depth(values.type) > 1:
        inner = _inner_arrays(values)
        sizes.append(Counter(pc.list_value_length(inner).drop_null().to_pylist()))
        values = _flatten_once(values, inner)
    return FlatArrays(values, tuple(sizes))


def require_sizes(values: pa.Array, required: tuple[int, ...]) -> pa.Array:
    """Returns the flat arrays, with null in place of each that has an inner array of another length."""
    is_valid = np.ones(len(values), bool)
    inner, rows = values, np.arange(len(values))
    for size in required:
        parents = pc.list_parent_indices(inner).to_numpy()
        rows, inner = rows[parents], _inner_arrays(inner)
        lengths = pc.fill_null(pc.list_value_length(inner), -1).to_numpy(zero_copy_only=False)
        is_valid[rows[lengths != size]] = False
    flat = flatten_arrays(values).values
    return flat if is_valid.all() else pc.if_else(pa.array(is_valid), flat, pa.scalar(None, flat.type))


def _inner_arrays(values: pa.Array) -> pa.Array:
    """Returns the arrays in arrays, one after the other; for objects, arrays of their values."""
    inner = values.flatten()
    if not pa.types.is_struct(inner.type):
        return inner
    step_type, width = _step_type(inner.type), inner.type.num_fields
    columns = [column.cast(step_type) for column in inner.flatten()]
    order = np.arange(width * len(inner)).reshape(width, len(inner)).T.reshape(-1)
    return equal_lists(pa.concat_arrays(columns).take(pa.array(order)), width, len(inner), mask=inner.is_null())


def _flatten_once(values: pa.Array, inner: pa.Array) -> pa.Array:
    """Returns arrays of the elements of the inner arrays."""
    lengths = pc.fill_null(pc.list_value_length(inner), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    parents = pc.list_parent_indices(values).to_numpy()
    sums = np.bincount(parents, lengths, len(values)).astype(np.int64)
    has_null = np.zeros(len(values), bool)
    has_null[parents[inner.is_null().to_numpy(zero_copy_only=False)]] = True
    is_null = values.is_null().to_numpy(zero_copy_only=False) | has_null
    elements = inner.flatten()
    if inner.type.value_type != elements.type:
        elements = elements.cast(inner.type.value_type)
    return pa.ListArray.from_arrays(list_offsets(sums), elements, mask=pa.array(is_null))
