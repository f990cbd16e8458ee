"""Paths that begin with an environment variable, and errors about missing data."""

from __future__ import annotations

from pathlib import Path

import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import ingest, locate_source

DATA = DataSource(source="${ROWS_OF_A_TEST}/rows.csv", obtain="from example.org, under CC0")


def write_rows(folder: Path) -> str:
    folder.mkdir()
    (folder / "rows.csv").write_text("a\n1\n")
    return str(folder)


def test_a_cached_result_is_reused_when_the_variable_names_another_folder(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_OF_A_TEST", write_rows(tmp_path / "one"))
    first = ingest(locate_source(DATA))
    assert first.num_rows == 1
    assert first.source == DATA.source
    monkeypatch.setenv("ROWS_OF_A_TEST", write_rows(tmp_path / "other") + "/")
    assert ingest.lookup(locate_source(DATA)) == first
    assert ingest.lookup(locate_source(DATA.model_copy(update={"obtain": None}))) == first
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROWS_OF_A_TEST", "one")
    assert locate_source(DATA).data.source == str(tmp_path / "one" / "rows.csv")


def test_an_unset_variable_is_reported_with_the_origin_of_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROWS_OF_A_TEST", raising=False)
    with pytest.raises(DataMissing) as caught:
        locate_source(DATA)
    assert caught.value.found == "the environment variable ROWS_OF_A_TEST is not set"
    assert "rows.csv" in caught.value.required
    assert "export ROWS_OF_A_TEST=" in caught.value.remedy
    assert "from example.org, under CC0" in caught.value.remedy


def test_a_missing_file_is_reported_with_the_origin_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWS_OF_A_TEST", str(tmp_path))
    with pytest.raises(DataMissing, match=f"no csv file {tmp_path}/rows.csv") as caught:
        locate_source(DATA)
    assert "from example.org, under CC0" in caught.value.remedy


def test_a_variable_may_name_a_bucket_but_not_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    from bloomery.tasks.ingest.path_variables import expand_variables

    monkeypatch.setenv("ROWS_OF_A_TEST", "s3://bucket/data/")
    assert expand_variables(DATA).source == "s3://bucket/data/rows.csv"
    monkeypatch.setenv("ROWS_OF_A_TEST", "hive:sales")
    with pytest.raises(DataMissing, match="'hive:sales'"):
        expand_variables(DATA)
