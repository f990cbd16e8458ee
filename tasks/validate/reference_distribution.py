"""Distributions of rows that keep their contract, as a named reference that later rows are compared with."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.distributions import Bins, Reference, count_into_bins, reference_column
from bloomery.tasks.infrastructure import duckdb_session
from bloomery.tasks.infrastructure.duckdb_session import parquet_path_sql
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.sql_text import quote_name

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MOST_VALUES = 50
_NUM_CELLS = 10
_COUNTED = ("integer", "number", "string", "boolean")


def measure_reference(path: Path, contract: Contract, columns: Sequence[str] = ()) -> Reference:
    """The distributions of `columns`, or of every column that has one, in the checked rows at `path`.

    A column with few values has a cell for each; other numbers have a cell for each tenth of the rows. Columns about
    people, keys and texts of many values have none.

    Raises:
        DataMissing: a column is not in the contract, or has no distribution to refer to.
    """
    asked = columns or [column.name for column in contract.columns]
    found = {}
    with duckdb_session.open_session() as engine:
        engine.execute(f"create view rows as select * from read_parquet({parquet_path_sql(path)})")
        for name in asked:
            cells = _cells(engine, contract, name)
            if cells is not None:
                counts = (count_into_bins(cells, batch.column(0)) for batch in read_batches(path, [name]))
                found[name] = reference_column(functools.reduce(operator.add, counts))
    missing = [name for name in columns if name not in found]
    if missing or not found:
        raise DataMissing(
            f"there is no distribution of {', '.join(missing) or 'any column'}",
            required="columns of numbers, or of few different values, that hold any and are about no person",
            where=f"contract {contract.name} {contract.version}",
            remedy=f"name others; there are {', '.join(column.name for column in contract.columns)}",
        )
    return Reference(columns=found)


def _cells(engine: DuckDBPyConnection, contract: Contract, name: str) -> Bins | None:
    column = contract.column(name)
    is_key = column is not None and (column.primary_key or column.unique)
    if column is None or column.personal is not None or is_key or column.logical_type not in _COUNTED:
        return None
    held = f"from rows where {quote_name(name)} is not null"
    values = engine.execute(f"select distinct {quote_name(name)} {held} order by 1 limit {_MOST_VALUES + 1}").fetchall()
    if not values:
        return None
    if len(values) <= _MOST_VALUES and column.logical_type != "number":
        return Bins(values=tuple(value for (value,) in values))
    if column.logical_type not in ("integer", "number"):
        return None
    shares = ", ".join(str(place / _NUM_CELLS) for place in range(1, _NUM_CELLS))
    edges = engine.execute(f"select quantile_disc({quote_name(name)}, [{shares}]) {held}").fetchall()[0][0]
    return Bins(edges=tuple(sorted({float(edge) for edge in edges})))
