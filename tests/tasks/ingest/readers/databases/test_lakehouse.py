"""Delta and Iceberg tables at one version, databases through ADBC, and errors about missing packages."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataMissing, EngineMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import locate_source

TABLE = pa.table({"id": [1, 2], "word": ["x", None]})


@pytest.mark.slow
def test_a_delta_table_is_read_at_its_version(ingest_rows, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    path = str(tmp_path / "table")
    deltalake.write_deltalake(path, TABLE, partition_by=["word"])
    first = locate_source(DataSource(source=f"delta:{path}")).digest
    deltalake.write_deltalake(path, pa.table({"id": [3], "word": ["y"]}), mode="append")
    assert locate_source(DataSource(source=f"delta:{path}")).digest != first
    result = ingest_rows(source=f"delta:{path}", version=0)
    assert sorted(result.rows, key=lambda row: row["id"]) == TABLE.to_pylist()
    assert result.table.schema.field("word").type == pa.string()
    assert ingest_rows(source=f"delta:{path}").record.num_rows == 3
    with pytest.raises(DataMissing, match="cannot be read"):
        ingest_rows(source=f"delta:{path}", version=7)
    with pytest.raises(DataMissing, match="cannot be read"):
        ingest_rows(source=f"delta:{tmp_path / 'nowhere'}")


@pytest.mark.slow
def test_an_iceberg_table_is_read_at_its_snapshot(ingest_rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyiceberg")
    from pyiceberg.catalog import load_catalog

    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__URI", f"sqlite:///{tmp_path}/catalog.db")
    monkeypatch.setenv("PYICEBERG_CATALOG__HERE__WAREHOUSE", f"file://{tmp_path}/warehouse")
    catalog = load_catalog("here", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/warehouse")
    catalog.create_namespace("sales")
    table = catalog.create_table("sales.rows", schema=TABLE.schema)
    table.append(TABLE)
    first = table.current_snapshot().snapshot_id
    table.append(pa.table({"id": [3], "word": ["y"]}))
    metadata = table.metadata_location.removeprefix("file://")
    assert sorted(row["id"] for row in ingest_rows(source=f"iceberg:{metadata}").rows) == [1, 2, 3]
    result = ingest_rows(source=f"iceberg:{metadata}", version=first)
    assert result.rows == TABLE.to_pylist()
    assert result.table.schema.field("word").type == pa.string()
    with pytest.raises(DataMissing, match="no snapshot 7"):
        ingest_rows(source=f"iceberg:{metadata}", version=7)
    with pytest.raises(DataMissing, match="cannot be read"):
        ingest_rows(source=f"iceberg:{tmp_path}/v9.metadata.json")


@pytest.mark.parametrize("package", ["deltalake", "pyiceberg"])
def test_a_missing_package_is_reported_with_its_install_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    scheme = {"deltalake": "delta", "pyiceberg": "iceberg"}[package]
    with pytest.raises(EngineMissing) as caught:
        locate_source(DataSource(source=f"{scheme}:{tmp_path}/v1.metadata.json"))
    assert package in caught.value.found
    assert caught.value.remedy == f"pip install 'bloomery[{scheme}]'"


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> sqlite3.Connection:
    pytest.importorskip("adbc_driver_sqlite")
    connection = sqlite3.connect(tmp_path / "rows.db")
    connection.execute("create table rows (id integer, word text, x real)")
    connection.executemany("insert into rows values (?, ?, ?)", [(2, None, 0.5), (1, "x", 1.5)])
    connection.commit()
    monkeypatch.setenv("ROWS_URI", f"file:{tmp_path / 'rows.db'}")
    return connection


SQL = {"source": "sql:adbc_driver_sqlite", "uri_variable": "ROWS_URI"}


def test_rows_of_a_query_keep_their_order_and_types(ingest_rows, database: sqlite3.Connection) -> None:
    options = {**SQL, "query": "select * from rows order by id"}
    result = ingest_rows(**options)
    assert result.rows == [{"id": 1, "word": "x", "x": 1.5}, {"id": 2, "word": None, "x": 0.5}]
    first = locate_source(DataSource(**options)).digest
    database.execute("insert into rows values (3, 'z', 0)")
    database.commit()
    assert locate_source(DataSource(**options)).digest != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": "select nowhere from rows order by id"}, "the query failed: .*no such column"),
        ({"uri_variable": "NOT_SET"}, "variable NOT_SET is not set"),
        ({"source": "sql:os"}, "is not the name of an ADBC driver"),
    ],
)
def test_a_failing_query_is_reported(ingest_rows, database, changes: dict, message: str) -> None:
    with pytest.raises(DataMissing, match=message):
        ingest_rows(**{**SQL, "query": "select * from rows order by id", **changes})


def test_a_missing_driver_is_reported_with_its_install_command(ingest_rows, database) -> None:
    with pytest.raises(EngineMissing) as caught:
        ingest_rows(**{**SQL, "source": "sql:adbc_driver_nowhere", "query": "select * from rows order by id"})
    assert caught.value.remedy == "pip install adbc-driver-nowhere"


def test_error_messages_contain_no_password(ingest_rows, database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROWS_URI", "file:/nowhere/secret/rows.db?mode=ro")
    with pytest.raises(DataMissing) as caught:
        ingest_rows(**SQL, query="select * from rows order by id")
    assert "secret" not in str(caught.value)
