"""Equal content has equal digests, and different content different digests."""

from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file, digest_of_table
from tests.examples import examples

DOCUMENTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)
# Few values of each type, so that two generated tables are often equal.
CELLS: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.sampled_from([None, 0, 1]),
    pa.int32(): st.sampled_from([None, 0, 1]),
    pa.float64(): st.sampled_from([None, 0.0, 1.0]),
    pa.bool_(): st.sampled_from([None, False, True]),
    pa.string(): st.sampled_from([None, "", "a", "ab"]),
    pa.list_(pa.int64()): st.sampled_from([None, [], [None], [0], [0, 1]]),
    pa.list_(pa.string()): st.sampled_from([None, [], [""], ["a", "b"], ["ab"]]),
}


@st.composite
def tables(draw: st.DrawFn, max_columns: int = 3, max_rows: int = 6) -> pa.Table:
    kinds = draw(st.lists(st.sampled_from(list(CELLS)), min_size=1, max_size=max_columns))
    num_rows = draw(st.integers(0, max_rows))
    return pa.table(
        {
            f"c{position}": pa.array(draw(st.lists(CELLS[kind], min_size=num_rows, max_size=num_rows)), kind)
            for position, kind in enumerate(kinds)
        }
    )


def cut(table: pa.Table, at: list[int]) -> pa.Table:
    """The same rows in chunks that start at the rows `at`; a repeated row gives an empty chunk."""
    edges = [0, *sorted(at), table.num_rows]
    pieces = [table.slice(start, end - start) for start, end in itertools.pairwise(edges)]
    return pa.concat_tables(pieces)


@settings(deadline=None, max_examples=examples(100))
@given(data=st.data(), table=tables())
def test_chunks_do_not_change_the_digest_of_a_table(data, table):
    edges = data.draw(st.lists(st.integers(0, table.num_rows), max_size=4))
    assert digest_of_table(cut(table, edges)) == digest_of_table(table)


@settings(deadline=None, max_examples=examples(100))
@given(data=st.data(), table=tables())
def test_a_slice_has_the_digest_of_a_table_with_the_same_rows(data, table):
    start = data.draw(st.integers(0, table.num_rows))
    length = data.draw(st.integers(0, table.num_rows - start))
    alone = pa.Table.from_pylist(table.slice(start, length).to_pylist(), schema=table.schema)
    assert digest_of_table(table.slice(start, length)) == digest_of_table(alone)


@settings(deadline=None, max_examples=examples(300))
@given(first=tables(max_columns=1, max_rows=2), second=tables(max_columns=1, max_rows=2))
def test_two_tables_have_the_same_digest_only_if_they_are_equal(first, second):
    assert (digest_of_table(first) == digest_of_table(second)) == first.equals(second)


@settings(deadline=None, max_examples=examples(100))
@given(data=st.data(), table=tables())
def test_changing_a_cell_changes_the_digest(data, table):
    assume(table.num_rows)
    row = data.draw(st.integers(0, table.num_rows - 1))
    field = data.draw(st.sampled_from(list(table.schema)))
    rows = table.to_pylist()
    rows[row][field.name] = data.draw(CELLS[field.type].filter(lambda value: value != rows[row][field.name]))
    assert digest_of_table(pa.Table.from_pylist(rows, schema=table.schema)) != digest_of_table(table)


@pytest.mark.parametrize("cuts", [[1], [65_535], [65_536], [65_537], [10, 65_540, 70_000]])
def test_chunks_do_not_change_the_digest_of_a_long_table(cuts):
    table = pa.table({"v": pa.array(range(70_001)), "w": pa.array([[n] for n in range(70_001)])})
    assert digest_of_table(cut(table, cuts)) == digest_of_table(table)


def test_the_last_row_of_a_long_table_changes_the_digest():
    values = list(range(70_001))
    digest = digest_of_table(pa.table({"v": values}))
    assert digest_of_table(pa.table({"v": values[:-1]})) != digest
    assert digest_of_table(pa.table({"v": [*values[:-1], 0]})) != digest


def test_names_and_order_of_columns_and_rows_change_the_digest():
    digests = [
        digest_of_table(table)
        for table in (
            pa.table({"v": [1, 2], "w": [1, 2]}),
            pa.table({"v": [2, 1], "w": [2, 1]}),
            pa.table({"w": [1, 2], "v": [1, 2]}),
            pa.table({"v": [1, 2], "x": [1, 2]}),
        )
    ]
    assert len(set(digests)) == len(digests)


def test_a_value_under_a_null_does_not_change_the_digest():
    digests = {digest_of_table(pa.table({"v": pa.array([1, hidden], mask=[False, True])})) for hidden in (2, 3)}
    assert len(digests) == 1


def test_a_table_has_the_digest_of_its_parquet_file(tmp_path: Path):
    table = pa.table({"v": [1, None, 3], "w": [[1.5], [], None], "x": ["a", None, ""]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    assert digest_of_table(pq.read_table(tmp_path / "rows.parquet")) == digest_of_table(table)


def test_metadata_of_the_schema_does_not_change_the_digest():
    table = pa.table({"v": [1]})
    annotated = table.replace_schema_metadata({"written by": "a test"})
    assert digest_of_table(annotated) == digest_of_table(table)


def test_metadata_of_a_column_does_not_change_the_digest():
    table = pa.table({"v": [1]})
    annotated = table.cast(pa.schema([pa.field("v", pa.int64(), metadata={"PARQUET:field_id": "7"})]))
    assert digest_of_table(annotated) == digest_of_table(table)


def test_the_values_of_a_dictionary_column_change_the_digest():
    first, second = (pa.table({"v": pa.array(values).dictionary_encode()}) for values in (["a", "b"], ["c", "d"]))
    assert digest_of_table(first) != digest_of_table(second)


@settings(deadline=None, max_examples=examples(100))
@given(document=DOCUMENTS, seed=st.integers(0, 9))
def test_the_order_of_keys_does_not_change_the_digest_of_a_document(document, seed):
    assert digest_of_document(_shuffled(document, random.Random(seed))) == digest_of_document(document)


def _shuffled(document: Any, chance: random.Random) -> Any:
    if isinstance(document, list):
        return [_shuffled(value, chance) for value in document]
    if isinstance(document, dict):
        keys = list(document)
        chance.shuffle(keys)
        return {key: _shuffled(document[key], chance) for key in keys}
    return document


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], [2, 1]),
        ([1, [2]], [[1], 2]),
        ({"a": 1}, {"a": "1"}),
        ({"a": None}, {}),
        (1, True),
        (1, 1.0),
        ("", None),
        ("é", "e\u0301"),
    ],
)
def test_different_documents_have_different_digests(first, second):
    assert digest_of_document(first) != digest_of_document(second)


def test_the_digest_of_a_document_is_that_of_its_compact_json():
    expected = hashlib.sha256(b'{"a":[1,"\\u00e9"],"b":null}').hexdigest()
    assert digest_of_document({"b": None, "a": [1, "é"]}) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_has_no_digest(value):
    with pytest.raises(ValueError, match="JSON"):
        digest_of_document({"a": value})


@pytest.mark.parametrize("size", [0, 1, 1_000_000])
def test_the_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path, size: int):
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(content)
        assert digest_of_file(tmp_path / name) == hashlib.sha256(content).hexdigest()
