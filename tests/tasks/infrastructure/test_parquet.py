"""Files whose bytes depend on their rows alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.tasks.infrastructure.parquet import ROW_GROUP_SIZE, RowWriter, read_batches, row_group_size_of, write_rows
from bloomery.tasks.validate.row_mask import RowMask
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
    whole, cut = tmp_path / "whole.parquet", tmp_path / "cut.parquet"
    for path, edges in ((whole, [0, 200]), (cut, [0, *sorted(cuts), 200])):
        with RowWriter(path, SCHEMA, group_rows) as writer:
            for start, stop in itertools.pairwise(edges):
                for batch in table.slice(start, stop - start).combine_chunks().to_batches():
                    writer.write(batch)
        assert writer.num_rows == 200
    assert whole.read_bytes() == cut.read_bytes()
    assert pq.read_table(cut) == table
    sizes = {pq.read_metadata(cut).row_group(group).num_rows for group in range(pq.read_metadata(cut).num_row_groups)}
    assert max(sizes) == min(group_rows, 200)


def test_what_describes_a_schema_is_not_part_of_the_rows(tmp_path):
    table = rows(3)
    noted = table.replace_schema_metadata({"pandas": "x"})
    for name, one in (("a", table), ("b", noted)):
        write_rows(tmp_path / name, one.schema, one.to_batches())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert all(batch.schema.metadata is None for batch in read_batches(tmp_path / "b"))


def test_a_file_without_rows_has_its_columns(tmp_path):
    assert write_rows(tmp_path / "none", SCHEMA, []) == 0
    assert pq.read_table(tmp_path / "none").schema.equals(SCHEMA)
    assert list(read_batches(tmp_path / "none")) == []
    assert row_group_size_of(tmp_path / "none") == ROW_GROUP_SIZE


def test_rows_that_lay_in_small_groups_are_read_in_small_batches(tmp_path):
    for size, wanted in ((40, 40), (100, ROW_GROUP_SIZE), (200_000, ROW_GROUP_SIZE)):
        pq.write_table(rows(100), tmp_path / "some", row_group_size=size)
        assert row_group_size_of(tmp_path / "some") == wanted
    pq.write_table(rows(100), tmp_path / "some", row_group_size=40)
    assert max(batch.num_rows for batch in read_batches(tmp_path / "some")) == 40


def test_columns_can_be_read_alone(tmp_path):
    write_rows(tmp_path / "some", SCHEMA, rows(5).to_batches())
    (batch,) = read_batches(tmp_path / "some", ["s"])
    assert batch.schema.names == ["s"]


@settings(deadline=None)
@given(num=st.integers(0, 100), data=st.data())
def test_marks_are_a_set_of_positions(num, data):
    positions = st.lists(st.integers(0, num - 1), unique=True) if num else st.just([])
    first, second = data.draw(positions), data.draw(positions)
    marks, more = RowMask(num), RowMask(num)
    marks.add(np.array(first, np.int64))
    more.add(np.array(second, np.int64))
    assert marks.num_set == len(first)
    marks.merge(more)
    union = set(first) | set(second)
    assert marks.num_set == len(union)
    start = data.draw(st.integers(0, num))
    stop = data.draw(st.integers(start, num))
    assert marks.between(start, stop - start).tolist() == [row in union for row in range(start, stop)]
