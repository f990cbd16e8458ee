"""Tables of a notebook, written as Parquet."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataUnfit
from bloomery.flows.python_api.frames import is_frame, to_same_kind, write_frame


class Polars:
    """A stand-in for a DataFrame of Polars, which is not installed: another library with Arrow's interface."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._table.__arrow_c_stream__(requested_schema)


def written(data: Any, folder: Path) -> pa.Table:
    write_frame(data, folder / "data" / "rows.parquet")
    return pq.read_table(folder / "data" / "rows.parquet")


def test_a_frame_keeps_its_rows_columns_and_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "number": [1.5, None],
            "count": [1, 2],
            "text": ["a", None],
            "day": pd.to_datetime(["2024-02-29", None]),
            "kind": pd.Categorical(["x", "y"]),
            7: [True, False],
        }
    )
    table = written(frame, tmp_path)
    assert table.column_names == ["number", "count", "text", "day", "kind", "7"]
    assert table.to_pydict()["number"] == [1.5, None]
    assert table.schema.field("kind").type == pa.string()
    assert pa.types.is_timestamp(table.schema.field("day").type)


def test_a_named_index_is_a_column_and_another_is_not(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1, 2]}, index=[10, 20])
    assert written(frame, tmp_path).column_names == ["a"]
    named = frame.rename_axis("id")
    assert written(named, tmp_path).to_pydict() == {"id": [10, 20], "a": [1, 2]}


def test_values_of_several_types_are_text(tmp_path: Path) -> None:
    values = [1, "abc", None, Decimal("1.5")]
    frame = pd.DataFrame(
        {"mixed": pd.Series(values, dtype=object), "period": pd.period_range("2024-01", periods=4, freq="M")}
    )
    assert written(frame, tmp_path).to_pydict() == {
        "mixed": ["1", "abc", None, "1.5"],
        "period": ["2024-01", "2024-02", "2024-03", "2024-04"],
    }


def test_other_libraries_hand_over_arrow(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    for data in (table, Polars(table)):
        assert is_frame(data)
        assert written(data, tmp_path).equals(table)
    assert not is_frame("rows.csv")
    assert not is_frame([{"a": 1}])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), "the columns 'a' occur twice"),
        (pd.DataFrame([[1, 2]], columns=["1", 1]), "the columns '1' occur twice"),
        (pd.DataFrame(index=[1, 2]), "the table has no column"),
    ],
)
def test_a_table_that_cannot_be_written_is_refused(frame: pd.DataFrame, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataUnfit, match=message):
        write_frame(frame, tmp_path / "rows.parquet")


def test_predictions_have_the_kind_of_the_data() -> None:
    predictions = pd.DataFrame({"label": ["a"], "probabilities": [{"a": 1.0}]})
    assert to_same_kind(predictions, pd.DataFrame({"x": [1]})) is predictions
    assert to_same_kind(predictions, [{"x": 1}]) is predictions
    table = to_same_kind(predictions, pa.table({"x": np.arange(1)}))
    assert table.to_pylist() == [{"label": "a", "probabilities": {"a": 1.0}}]


def test_levels_of_an_index_and_of_columns(tmp_path: Path) -> None:
    index = pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["site", None])
    assert written(pd.DataFrame({"a": [1, 2]}, index=index), tmp_path).to_pydict() == {"site": ["x", "y"], "a": [1, 2]}
    same_name = pd.DataFrame({"a": [1, 2]}).set_index("a", drop=False)
    assert written(same_name, tmp_path).to_pydict() == {"a": [1, 2]}
    levels = pd.DataFrame([[1, 2]], columns=pd.MultiIndex.from_tuples([("size", "mean"), ("kind", "")]))
    assert written(levels, tmp_path).to_pydict() == {"size.mean": [1], "kind": [2]}


def test_categories_of_other_libraries_are_values(tmp_path: Path) -> None:
    table = pa.table({"kind": pa.array(["x", None, "x"]).dictionary_encode(), "n": [1, 2, 3]})
    for data in (table, Polars(table)):
        assert written(data, tmp_path).schema.types == [pa.string(), pa.int64()]
    assert written(table, tmp_path).to_pydict()["kind"] == ["x", None, "x"]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    class Column:
        """A stand-in for a Series of Polars, which has Arrow's interface, too."""

        def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
            return pa.chunked_array([[1, 2]]).__arrow_c_stream__(requested_schema)

    for data in (Column(), pd.Series([1, 2])):
        with pytest.raises(DataUnfit, match="is no table") as caught:
            write_frame(data, tmp_path / "rows.parquet")
        assert "to_frame" in caught.value.remedy
