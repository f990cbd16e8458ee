"""SQLite files: a table becomes rows of texts."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import ingest, locate_source


def write_database(path: Path, *statements: str) -> str:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return str(path)


def test_values_of_any_type_are_read_in_the_order_of_storage(ingest_rows, tmp_path: Path) -> None:
    source = write_database(
        tmp_path / "rows.sqlite",
        'create table "my rows"(id integer primary key, a real, "b c" text, flag boolean, raw blob)',
        """insert into "my rows" values (2, 1.5, 'é', 1, x'00ff'), (1, 'abc', null, 0, null)""",
        """insert into "my rows" values (3, 2.0, '', null, 'x')""",
    )
    result = ingest_rows(source=source)
    assert result.record.is_text
    assert result.rows == [
        {"id": "1", "a": "abc", "b c": None, "flag": "false", "raw": None},
        {"id": "2", "a": "1.5", "b c": "é", "flag": "true", "raw": b"\x00\xff"},
        {"id": "3", "a": "2", "b c": None, "flag": None, "raw": b"x"},
    ]
    assert result.table.schema.field("raw").type == pa.binary()


def test_options_name_the_table_or_a_query(ingest_rows, tmp_path: Path) -> None:
    source = write_database(
        tmp_path / "rows.db",
        "create table a(x)",
        "create table b(x, y)",
        "insert into b values (1, '1,5'), (2, ' n/a ')",
        "create view c as select y from b",
    )
    options = {"source": source, "format": "sqlite", "strip": True}
    assert ingest_rows(**options, table="b", decimal=",", numbers=["y"], missing=["n/a"]).rows == [
        {"x": "1", "y": "1.5"},
        {"x": "2", "y": None},
    ]
    assert ingest_rows(**options, table="c").rows == [{"y": "1,5"}, {"y": "n/a"}]
    query = "select x * 2 as z from b order by x desc;"
    assert ingest_rows(**options, query=query).rows == [{"z": "4"}, {"z": "2"}]


FAULTS = {
    "several tables": ({}, "has the tables 'a', 'b'.*\n.*\n.*\n.*name one by `table`"),
    "another table": ({"table": "c"}, "has no table 'c', but 'a', 'b'"),
    "a query that fails": ({"query": "select z from a order by z"}, "no such column: z"),
    "numbers of no column": ({"table": "a", "decimal": ",", "numbers": ["y"]}, "there is no column y"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_an_unclear_table_is_refused(fault: str, home: Path, tmp_path: Path) -> None:
    options, message = FAULTS[fault]
    source = write_database(tmp_path / "rows.sqlite", "create table a(x)", "create table b(x)")
    with pytest.raises(DataMissing, match=message):
        ingest(locate_source(DataSource(source=source, **options)))


def test_a_file_that_is_no_database_or_not_complete_is_refused(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite"
    path.write_bytes(b"SQLite format 3\0" + bytes(2_000))
    with pytest.raises(DataMissing, match="cannot be read as sqlite: file is not a database"):
        ingest(locate_source(DataSource(source=str(path))))
    path.unlink()
    write_database(path, "create table a(x)")
    (tmp_path / "rows.sqlite-wal").write_bytes(b"changes")
    with pytest.raises(DataMissing, match=r"its last changes are in rows\.sqlite-wal"):
        ingest(locate_source(DataSource(source=str(path))))


@pytest.mark.parametrize("end", ["", ";", " -- the newest first"])
def test_a_query_may_name_a_table_in_quotes(end: str, ingest_rows, tmp_path: Path) -> None:
    rows = """insert into "a b" values (1, 'u'), (2, 'v'), (3, 'w')"""
    source = write_database(tmp_path / "rows.sqlite", 'create table "a b"(x, y)', rows)
    query = f'select * from "a b" where x > 1 order by x desc{end}'
    assert ingest_rows(source=source, query=query).rows == [{"x": "3", "y": "w"}, {"x": "2", "y": "v"}]


def test_a_view_that_fails_does_not_stop_the_tables(ingest_rows, tmp_path: Path) -> None:
    statements = (
        "create table a(x)",
        "insert into a values (1)",
        "create table b(y)",
        "create view c as select y from b",
    )
    source = write_database(tmp_path / "rows.sqlite", *statements, "drop table b")
    assert ingest_rows(source=source).rows == [{"x": "1"}]
    with pytest.raises(DataMissing, match=r"the view c fails: no such table: main\.b"):
        ingest_rows(source=source, table="c")
