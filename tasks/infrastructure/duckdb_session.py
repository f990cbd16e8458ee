"""DuckDB: the engine for data that fits one machine, with memory that is bounded and spills to the state folder."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.sql_text import quote_text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MOST_BYTES = 1_200_000_000  # more makes nothing faster that spills well, and others want the rest
_LEAST_BYTES = 400_000_000


@contextlib.contextmanager
def open_session() -> Iterator[DuckDBPyConnection]:
    """A DuckDB of its own, that is gone with all it has spilled when the block ends."""
    import duckdb

    memory = max(min(psutil.virtual_memory().available // 2, _MOST_BYTES), _LEAST_BYTES)
    scratch = settings().home / "duckdb"
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch) as spilled:
        connection = duckdb.connect(
            config={
                "memory_limit": f"{memory}B",
                "temp_directory": spilled,
                "preserve_insertion_order": True,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            }
        )
        try:
            yield connection
        finally:
            connection.close()


def parquet_path_sql(path: Path) -> str:
    """A Parquet file's path as SQL writes it: its own characters, where DuckDB would look for a pattern."""
    return quote_text(re.sub(r"([*?[])", r"[\1]", str(path)))
