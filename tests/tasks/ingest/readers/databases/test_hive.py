"""Hive tables, from a metastore in the state folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.ingest.readers.databases import hive
from bloomery.tasks.ingest.stage import locate_source

pytestmark = pytest.mark.slow


def test_a_hive_table_is_sorted_by_all_its_columns(ingest_rows, home: Path) -> None:
    try:
        session = hive.hive_session()
        session.sql("create database sales")
        session.sql("create table sales.rows (id int, word string) row format delimited fields terminated by '|'")
        session.sql("insert into sales.rows values (2, 'b'), (3, null), (1, 'a')")
        first = locate_source(DataSource(source="hive:sales.rows")).digest
        session.sql("insert into sales.rows values (0, 'z')")
        assert locate_source(DataSource(source="hive:sales.rows")).digest != first
        with pytest.raises(DataMissing, match=r"hive:sales\.nowhere cannot be read"):
            locate_source(DataSource(source="hive:sales.nowhere"))
        result = ingest_rows(source="hive:sales.rows")
        assert [tuple(row.values()) for row in result.rows] == [(0, "z"), (1, "a"), (2, "b"), (3, None)]
        assert (home / "spark" / "metastore").is_dir()
        assert not Path("metastore_db").exists()
        assert not Path("derby.log").exists()
    finally:
        spark_session.stop_session()
