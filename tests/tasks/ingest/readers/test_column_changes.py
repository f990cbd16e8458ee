"""The changes of columns that a recipe's `data` names."""

from __future__ import annotations

import datetime as dt
import math
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.column_changes import normalize_text, normalize_texts


def test_missing_values_are_marked_by_column(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("country,age\nNA,NA\n,30\nDE,\n")
    result = ingest_rows(source=str(tmp_path / "rows.csv"), rename={"age": "years"}, missing={"years": ["NA"]})
    assert result.rows == [
        {"country": "NA", "years": None},
        {"country": None, "years": "30"},
        {"country": "DE", "years": None},
    ]


def test_missing_values_of_typed_columns_are_texts_and_nan(ingest_rows, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1.5, math.nan, None], "b": ["?", "x", ""]}), tmp_path / "rows.parquet")
    source = str(tmp_path / "rows.parquet")
    assert ingest_rows(source=source, missing={"a": ["NaN"], "b": ["?", ""]}).rows == [
        {"a": 1.5, "b": None},
        {"a": None, "b": "x"},
        {"a": None, "b": None},
    ]
    for missing in ({"a": ["?"]}, {"c": ["?"]}):
        with pytest.raises(RecipeInvalid, match="there is no text column"):
            ingest_rows(source=source, missing=missing)
    with pytest.raises(ValidationError, match="name the column"):
        DataSource.model_validate({"source": source, "missing": ["?"]})


def test_columns_are_left_out_by_their_name_in_the_source(ingest_rows, tmp_path: Path) -> None:
    pq.write_table(pa.table({"a b": [1], "place": [{"x": 1}]}), tmp_path / "rows.parquet")
    source = str(tmp_path / "rows.parquet")
    assert ingest_rows(source=source, drop=["place"], rename={"a b": "a"}).rows == [{"a": 1}]
    with pytest.raises(RecipeInvalid, match="there is no column c to leave out"):
        ingest_rows(source=source, drop=["c"])


def test_texts_are_normalized_before_they_are_replaced(ingest_rows, tmp_path: Path) -> None:
    texts = ["yes", "yes\u00a0", "y\u200bes", " yes ", "cafe\u0301", None]
    pq.write_table(pa.table({"label": texts, "kept": texts}), tmp_path / "rows.parquet")
    replace = {"label": {"yes": "ja"}}
    result = ingest_rows(source=str(tmp_path / "rows.parquet"), normalize=["label"], replace=replace)
    assert result.table["label"].to_pylist() == ["ja", "ja", "ja", "ja", "caf\u00e9", None]
    assert result.table["kept"].to_pylist() == texts


@given(st.lists(st.text(st.sampled_from("ab \u00a0\u200b\u0301\te\n\u2003")), max_size=5))
def test_normalized_texts_stay(texts: list[str]) -> None:
    normalized = normalize_texts(pa.array(texts, pa.string()))
    assert normalize_texts(normalized).to_pylist() == normalized.to_pylist()
    assert normalized.to_pylist() == [normalize_text(text) for text in texts]


def test_decimals_durations_and_times_of_day_become_numbers(ingest_rows, tmp_path: Path) -> None:
    table = pa.table(
        {
            "price": [Decimal("1.20"), None],
            "count": pa.array([Decimal(3), None], pa.decimal128(10, 0)),
            "wait": pa.array([dt.timedelta(seconds=1, milliseconds=500), None], pa.duration("ms")),
            "at": [dt.time(8, 30), None],
        }
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    result = ingest_rows(source=str(tmp_path / "rows.parquet"))
    assert [str(field.type) for field in result.table.schema] == ["double", "int64", "double", "double"]
    assert result.rows[0] == {"price": 1.2, "count": 3, "wait": 1.5, "at": 30600.0}
    assert set(result.rows[1].values()) == {None}
