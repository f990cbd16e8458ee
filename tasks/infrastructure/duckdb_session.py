"""DuckDB, the engine for data that fits one machine. Its memory is bounded, and it spills to the state folder."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pyarrow.parquet as pq

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import column_alias, quote_text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MAX_MEMORY_BYTES = 1_200_000_000  # more makes nothing faster that spills well, and leaves less to other processes
_MIN_MEMORY_BYTES = 400_000_000


@contextlib.contextmanager
def open_session() -> Iterator[DuckDBPyConnection]:
    """Yields a DuckDB connection. It is closed, and its spilled files are removed, when the block ends."""
    import duckdb

    memory_bytes = max(min(psutil.virtual_memory().available // 2, _MAX_MEMORY_BYTES), _MIN_MEMORY_BYTES)
    scratch = settings().home / "duckdb"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as spill_folder:
        connection = duckdb.connect(
            config={
                "memory_limit": f"{memory_bytes}B",
                "temp_directory": spill_folder,
                "preserve_insertion_order": True,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )
        try:
            yield connection
        finally:
            connection.close()


def create_row_view(engine: DuckDBPyConnection, view: str, path: Path) -> None:
    """Creates a view of a Parquet file, with its columns under their aliases.

    DuckDB does not distinguish names by case: under their own names `a` and `A` would be one column.
    """
    aliases = ", ".join(map(column_alias, pq.read_schema(path).names))
    engine.execute(f"create view {view}({aliases}) as select * from read_parquet({parquet_path_sql(path)})")


def parquet_path_sql(path: Path) -> str:
    """Returns a Parquet file's path as a SQL literal, with escapes for what DuckDB takes for wildcards."""
    return quote_text(re.sub(r"([*?[])", r"[\1]", str(path)))
