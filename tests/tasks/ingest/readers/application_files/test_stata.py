"""Stata files: rows with labels, dates and missing values."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pandas as pd
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import ingest, locate_source


def test_labels_dates_and_missing_values_are_read(ingest_rows, tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "num": pd.Series([1, 2], dtype="int8"),
            "vote": pd.Categorical(["yes", None]),
            "name": ["é", ""],
            "day": pd.to_datetime(["2024-02-29", None]),
        }
    )
    frame.to_stata(tmp_path / "rows.dta", write_index=False, version=118)
    result = ingest_rows(source=str(tmp_path / "rows.dta"))
    assert result.rows == [
        {"num": 1, "vote": "yes", "name": "é", "day": dt.datetime(2024, 2, 29)},
        {"num": 2, "vote": None, "name": None, "day": None},
    ]
    assert not result.record.is_text


def test_an_incomplete_file_is_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.dta").write_bytes(b"<stata_dta><header><release>118</release>")
    with pytest.raises(DataMissing, match="cannot be read as stata"):
        ingest(locate_source(DataSource(source=str(tmp_path / "rows.dta"))))
