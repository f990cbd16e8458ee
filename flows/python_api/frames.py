"""Tables of a notebook (pandas, Polars, Arrow) as Arrow tables and Parquet files, and predictions in the same form."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import DataUnfit

if TYPE_CHECKING:
    import pandas as pd


def is_frame(data: Any) -> bool:
    """Whether `data` is a table of pandas, Polars or Arrow."""
    return _is_pandas(data) or hasattr(data, "__arrow_c_stream__")


def write_frame(data: Any, path: Path) -> None:
    """Writes a table as a Parquet file. An index with a name becomes a column.

    Raises:
        DataUnfit: two columns have the same name, there is no column, or the data is no table.
    """
    table = _pandas_table(data) if _is_pandas(data) else _arrow_table(data)
    names = [str(name) for name in table.column_names]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated or not names:
        raise DataUnfit(
            f"the columns {', '.join(map(repr, repeated))} occur twice" if repeated else "the table has no column",
            required="columns with different names",
            where=f"the {type(data).__name__} that was given as data",
            remedy="rename or drop columns before the call",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.rename_columns(names).replace_schema_metadata(None), path)


def to_same_kind(predictions: pd.DataFrame, data: Any) -> Any:
    """The predictions as the kind of table that `data` is; as a DataFrame of pandas for rows."""
    if _is_pandas(data) or not hasattr(data, "__arrow_c_stream__"):
        return predictions
    records = predictions.to_dict("records")
    if type(data).__module__.startswith("polars"):
        return sys.modules["polars"].from_dicts(records)
    return pa.Table.from_pylist(records)


def _is_pandas(data: Any) -> bool:
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def _arrow_table(data: Any) -> pa.Table:
    """The table of Polars, Arrow or another library. Dictionaries, which categories are, become values."""
    try:
        table = data.to_arrow() if hasattr(data, "to_arrow") else pa.table(data)
    except (pa.ArrowException, TypeError, ValueError, AttributeError) as failure:
        raise _no_table(data) from failure
    if not isinstance(table, pa.Table):  # a Series has one array
        raise _no_table(data)
    columns = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, names=table.column_names)


def _no_table(data: Any) -> DataUnfit:
    return DataUnfit(
        f"the {type(data).__name__} is no table",
        required="rows with named columns",
        where="the argument `data` of bloomery.init",
        remedy="convert it to a table before the call, such as with .to_frame() or pandas.DataFrame(data)",
    )


def _pandas_table(frame: pd.DataFrame) -> pa.Table:
    """The columns, and the levels of the index that have a name and are not columns already.

    The names of columns that have several levels are joined by points.
    """
    levels = [name for name in frame.index.names if name is not None and name not in frame.columns]
    if levels:
        others = [position for position, name in enumerate(frame.index.names) if name not in levels]
        frame = (frame.reset_index(level=others, drop=True) if others else frame).reset_index()
    names = [
        ".".join(str(part) for part in name if part != "") if isinstance(name, tuple) else str(name)
        for name in frame.columns
    ]
    columns = [_pandas_column(frame.iloc[:, position]) for position in range(len(names))]
    return pa.Table.from_arrays(columns, names=names)


def _pandas_column(values: pd.Series[Any]) -> pa.Array:
    """The values as Arrow has them; as text where they have several types, or one that Parquet does not have."""
    try:
        array = pa.Array.from_pandas(values)
    except (pa.ArrowException, TypeError, ValueError):
        array = None
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if array is not None and pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array is None or isinstance(array.type, pa.ExtensionType):
        array = pa.array(
            [None if is_missing else str(value) for value, is_missing in zip(values, values.isna(), strict=True)]
        )
    return array
