"""Measures the distributions of validated rows, as a named reference for later rows."""

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
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.infrastructure.sql_text import column_alias

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_MAX_VALUES = 50
_NUM_BINS = 10
_BINNED_TYPES = ("integer", "number", "string", "boolean")


def measure_reference(path: Path, contract: Contract, columns: Sequence[str] = ()) -> Reference:
    """Measures the distributions of `columns`, or of every column that has one, in the validated rows at `path`.

    A column with few values has a bin for each; other numbers have a bin for each tenth of the rows. Personal columns,
    keys and texts with many values have no distribution.

    Raises:
        DataMissing: a column is not in the contract, or has no distribution.
    """
    names = columns or [column.name for column in contract.columns]
    distributions = {}
    with duckdb_session.open_session() as engine:
        duckdb_session.create_row_view(engine, "rows", path)
        for name in names:
            bins = _make_bins(engine, contract, name)
            if bins is not None:
                counts = (count_into_bins(bins, batch.column(0)) for batch in read_batches(path, [name]))
                distributions[name] = reference_column(functools.reduce(operator.add, counts))
    missing = [name for name in columns if name not in distributions]
    if missing or not distributions:
        raise DataMissing(
            f"there is no distribution of {', '.join(missing) or 'any column'}",
            required="columns of numbers or of few distinct values, that have values and are not personal",
            where=f"contract {contract.name} {contract.version}",
            remedy=f"choose other columns; the contract has {', '.join(column.name for column in contract.columns)}",
        )
    return Reference(columns=distributions)


def _make_bins(engine: DuckDBPyConnection, contract: Contract, name: str) -> Bins | None:
    column = contract.column(name)
    is_key = column is not None and (column.primary_key or column.unique)
    if column is None or column.personal is not None or is_key or column.logical_type not in _BINNED_TYPES:
        return None
    alias = column_alias(name)
    present = f"from rows where {alias} is not null"
    values = engine.execute(f"select distinct {alias} {present} order by 1 limit {_MAX_VALUES + 1}").fetchall()
    if not values:
        return None
    if len(values) <= _MAX_VALUES and column.logical_type != "number":
        return Bins(values=tuple(value for (value,) in values))
    if column.logical_type not in ("integer", "number"):
        return None
    shares = ", ".join(str(index / _NUM_BINS) for index in range(1, _NUM_BINS))
    edges = engine.execute(f"select quantile_disc({alias}, [{shares}]) {present}").fetchall()[0][0]
    return Bins(edges=tuple(sorted({float(edge) for edge in edges})))
