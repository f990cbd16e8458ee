"""The bytes of a Parquet file depend on its rows alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.tasks.infrastructure.parquet import (
    ROW_GROUP_SIZE,
    RowWriter,
    read_batches,
    row_group_size_for,
    row_group_size_of,
    write_rows,
)
from tests.examples import examples

SCHEMA = pa.schema([("n", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.float32()))])


def rows(num: int) -> pa.Table:
    words = [None if number % 7 == 0 else f"w{number % 5}" for number in range(num)]
    lists = [None if number % 11 == 0 else [number / 2] * (number % 3) for number in range(num)]
    return pa.table({"n": range(num), "s": words, "l": lists}, schema=SCHEMA)


@settings(deadline=None, max_examples=examples(30), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 200), max_size=12), group_rows=st.integers(1, 250))
def test_the_bytes_do_not_depend_on_where_batches_end(tmp_path: Path, cuts, group_rows):
    table = rows(200)
    one_batch_path, many_batches_path = tmp_path / "one-batch.parquet", tmp_path / "many-batches.parquet"
    for path, edges in ((one_batch_path, [0, 200]), (many_batches_path, [0, *sorted(cuts), 200])):
        with RowWriter(path, SCHEMA, group_rows) as writer:
            for start, stop in itertools.pairwise(edges):
                for batch in table.slice(start, stop - start).combine_chunks().to_batches():
                    writer.write(batch)
        assert writer.num_rows == 200
    assert one_batch_path.read_bytes() == many_batches_path.read_bytes()
    assert pq.read_table(many_batches_path) == table
    sizes = {
        pq.read_metadata(many_batches_path).row_group(group).num_rows
        for group in range(pq.read_metadata(many_batches_path).num_row_groups)
    }
    assert max(sizes) == min(group_rows, 200)


def test_metadata_of_a_schema_is_not_written(tmp_path):
    table = rows(3)
    annotated = table.replace_schema_metadata({"pandas": "x"})
    for name, source in (("a", table), ("b", annotated)):
        write_rows(tmp_path / name, source.schema, source.to_batches())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert all(batch.schema.metadata is None for batch in read_batches(tmp_path / "b"))


def test_a_file_without_rows_keeps_its_columns(tmp_path):
    assert write_rows(tmp_path / "none", SCHEMA, []) == 0
    assert pq.read_table(tmp_path / "none").schema.equals(SCHEMA)
    assert list(read_batches(tmp_path / "none")) == []
    assert row_group_size_of(tmp_path / "none") == ROW_GROUP_SIZE


def test_small_row_groups_are_read_in_small_batches(tmp_path):
    for size, expected in ((40, 40), (100, ROW_GROUP_SIZE), (200_000, ROW_GROUP_SIZE)):
        pq.write_table(rows(100), tmp_path / "some", row_group_size=size)
        assert row_group_size_of(tmp_path / "some") == expected
    pq.write_table(rows(100), tmp_path / "some", row_group_size=40)
    assert max(batch.num_rows for batch in read_batches(tmp_path / "some")) == 40


def test_columns_can_be_read_alone(tmp_path):
    write_rows(tmp_path / "some", SCHEMA, rows(5).to_batches())
    (batch,) = read_batches(tmp_path / "some", ["s"])
    assert batch.schema.names == ["s"]


@pytest.mark.parametrize(
    ("num_values", "num_rows"), [(1, 65_536), (1_024, 65_536), (3 * 224 * 224, 445), (10**9, 1), (0, 65_536)]
)
def test_row_groups_of_wide_rows_are_smaller(num_values, num_rows):
    assert row_group_size_for(num_values) == num_rows
