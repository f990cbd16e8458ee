"""Rows of Python values are encoded to the same bits as Arrow columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.columns.arrow_schema import value_range
from bloomery.data_contracts.requests.columnar_rows import ColumnarRows, ColumnKinds, to_table
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, encode, fit, partial_statistics
from bloomery.models.features.statistics.arrow_arrays import column_elements, number_matrix
from tests.examples import examples

INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")
KINDS = {name: getattr(pa, name)() for name in (*INTEGERS, "float32", "float64", "bool_")}


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """The values that a contract allows in a column of type `kind`."""
    if pa.types.is_boolean(kind):
        return st.booleans()
    low, high = value_range(kind)
    return st.floats(low, high) if pa.types.is_floating(kind) else st.integers(int(low), int(high))


def rows_of(**columns: tuple[pa.DataType, list[Any]]) -> ColumnarRows:
    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
    return ColumnarRows({name: values for name, (_, values) in columns.items()}, ColumnKinds(schema))


def fit_encoder(source: dict[str, Any], table: pa.Table) -> Encoder:
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [source]})
    labelled = table.append_column("id", pa.array(range(table.num_rows))).append_column(
        "label", pa.array([row % 2 for row in range(table.num_rows)])
    )
    return fit(
        features, [summary[STATISTICS][0].as_py() for summary in partial_statistics(features, labelled.to_batches())]
    )


@settings(deadline=None, max_examples=examples(100))
@given(data=st.data(), kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=4))
def test_numbers_are_read_like_arrow_columns(data, kinds):
    num_rows = data.draw(st.integers(1, 5))
    columns = {}
    for position, name in enumerate(kinds):
        cells = st.lists(st.none() | values_of(KINDS[name]), min_size=num_rows, max_size=num_rows)
        columns[f"c{position}"] = (KINDS[name], data.draw(cells))
    rows = rows_of(**columns)
    matrix = rows.numbers(list(columns))
    assert matrix is not None
    assert matrix.tobytes() == number_matrix(rows.batch, list(columns)).tobytes()


@settings(deadline=None, max_examples=examples(100))
@given(data=st.data(), name=st.sampled_from(list(KINDS)), size=st.integers(0, 5))
def test_list_elements_are_read_like_arrow_columns(data, name, size):
    kind = KINDS[name]
    cells = data.draw(st.lists(st.lists(values_of(kind), min_size=size, max_size=size), min_size=1, max_size=4))
    rows = rows_of(v=(pa.list_(kind), cells))
    elements, expected = column_elements(rows, "v"), column_elements(rows.batch, "v")
    assert (elements.dtype, elements.tobytes()) == (expected.dtype, expected.tobytes())


@pytest.mark.parametrize("name", ["uint8", "int64", "float32", "float64"])
@pytest.mark.parametrize("cells", [[[1, None]], [None], [[1, 2], None]])
def test_a_null_in_a_list_is_refused_like_in_arrow(name, cells):
    rows = rows_of(v=(pa.list_(KINDS[name]), cells))
    with pytest.raises(ValueError, match="a list, or one of its elements, is null"):
        column_elements(rows, "v")


PIXELS = {"kind": "image", "column": "v", "shape": [1, 2, 3]}
SIX = {"min_size": 6, "max_size": 6}
SHAPED: list[tuple[dict[str, Any], pa.DataType, st.SearchStrategy[Any]]] = [
    (PIXELS, pa.uint8(), st.lists(st.integers(0, 255), **SIX)),
    ({**PIXELS, "normalise": "unit"}, pa.int16(), st.lists(st.integers(-300, 300), **SIX)),
    ({**PIXELS, "resize": [3, 2]}, pa.uint8(), st.lists(st.integers(0, 255), **SIX)),
    (PIXELS, pa.float32(), st.lists(st.floats(-(2.0**99), 2.0**99), **SIX)),
    ({**PIXELS, "normalise": "none"}, pa.float64(), st.lists(st.floats(-1e300, 1e300), **SIX)),
    (
        {"kind": "sequence", "column": "v", "length": 3, "width": 2},
        pa.float64(),
        st.lists(st.floats(-1e9, 1e9), max_size=4).map(lambda values: values + values),
    ),
    ({"kind": "series", "columns": ["v"], "time": "t", "length": 6}, pa.float64(), st.lists(st.floats(-9, 9), **SIX)),
    (
        {
            "kind": "audio",
            "column": "v",
            "sample_rate": 8,
            "duration_s": 1,
            "window_s": 0.5,
            "step_s": 0.25,
            "num_mels": 2,
        },
        pa.int16(),
        st.lists(st.integers(-99, 99), min_size=4, max_size=9),
    ),
]


@pytest.mark.parametrize(("source", "kind", "cells"), SHAPED)
@settings(deadline=None, max_examples=examples(30))
@given(data=st.data())
def test_shaped_inputs_are_encoded_like_arrow_columns(source, kind, cells, data):
    rows = rows_of(
        v=(pa.list_(kind), data.draw(st.lists(cells, min_size=2, max_size=5).filter(lambda rows: any(map(any, rows)))))
    )
    encoder = fit_encoder(source, pa.Table.from_batches([rows.batch]))
    x = encode(encoder, rows)
    assert x.tobytes() == encode(encoder, rows.batch).tobytes()
    single_rows = [encode(encoder, rows.slice(row, 1)) for row in range(rows.num_rows)]
    assert x.tobytes() == np.concatenate(single_rows).tobytes()


def test_images_of_a_wrong_size_are_refused_like_arrow_columns():
    encoder = fit_encoder(PIXELS, pa.Table.from_batches([rows_of(v=(pa.list_(pa.uint8()), [[0] * 6, [9] * 6])).batch]))
    for cells in ([[1] * 5], [[1] * 6, [1] * 5]):
        with pytest.raises(DataUnfit, match="column v has"):
            encode(encoder, rows_of(v=(pa.list_(pa.uint8()), cells)))


def test_columnar_and_arrow_rows_form_one_table_in_order():
    schema = pa.schema([("v", pa.int16()), ("w", pa.list_(pa.float32()))])
    parts = [{"v": [position, None], "w": [[0.5], []]} for position in range(5)]
    column_rows = [ColumnarRows(part, ColumnKinds(schema)) for part in parts]
    expected = pa.Table.from_batches([part.batch for part in column_rows])
    assert to_table(column_rows).combine_chunks() == expected.combine_chunks()
    mixed = [column_rows[0], column_rows[1].batch, column_rows[2].batch, column_rows[3], column_rows[4]]
    assert to_table(mixed).combine_chunks() == expected.combine_chunks()
