"""The data source of a recipe: its format, its options and its paths."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from bloomery.data_contracts.recipe_sections.data_source import DataSource, LocatedSource


def test_a_source_survives_json():
    source = LocatedSource(source="sklearn:digits", data=DataSource(source="sklearn:digits"), digest="ab")
    assert LocatedSource.model_validate(source.model_dump(mode="json")) == source


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("rows.parquet", "parquet"),
        ("a/folder", "parquet"),
        ("rows-*.csv", "csv"),
        ("rows.CSV.gz", "csv"),
        ("s3://bucket/rows.jsonl.zst", "jsonl"),
        ("hdfs://host/rows.orc", "orc"),
        ("rows.feather", "arrow"),
        ("words.txt", "text"),
        ("rows.json.gz", "json"),
        ("${DATA}/rows.csv", "csv"),
        ("pictures/*.png", "images"),
        ("sklearn:iris", "sklearn"),
        ("delta:s3://bucket/table", "delta"),
        ("iceberg:here.sales.rows", "iceberg"),
        ("hive:sales.rows", "hive"),
    ],
)
def test_the_source_determines_the_format(source: str, kind: str):
    data = DataSource(source=source, mode="L") if kind == "images" else DataSource(source=source)
    assert data.kind == kind


QUERY = {"source": "sql:adbc_driver_sqlite", "uri_variable": "URI"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "either `source` or `sources`"),
        ({"source": ""}, "at least 1 character"),
        ({"source": "a.csv", "sources": [{"source": "b.csv", "part": "test"}]}, "either `source` or `sources`"),
        ({"sources": [{"source": "b.csv"}]}, "needs its `part`"),
        ({"sources": [{"source": "b.csv", "part": "exam"}]}, "train"),
        ({"sources": [{"source": "a.csv", "part": "train"}, {"source": "b.orc", "part": "test"}]}, "of one format"),
        ({"source": "rows.tra"}, "suffix '.tra' of 'rows.tra' names no format; set one of parquet, csv"),
        ({"source": "rows.parquet.gz"}, "compressed parquet is not supported"),
        ({"source": "gs://bucket/rows.csv"}, "unknown scheme gs:"),
        ({"source": "sklearn:iris", "format": "csv"}, "must be left out"),
        ({"source": "hive:"}, "must be followed by a name"),
        ({"source": "rows.parquet", "delimiter": ";"}, "delimiter: no meaning for a source of format parquet"),
        ({"source": "rows.csv", "sample_rate": 8000, "mode": "L"}, "mode, sample_rate: no meaning"),
        ({"source": "sounds", "format": "audio", "resample": True}, "resample: needs the `sample_rate`"),
        ({"sources": [{"source": "a.csv", "labels": "b", "part": "test"}]}, "labels: no meaning"),
        ({"source": "rows.csv", "encoding": "utf-9"}, "must know the encoding"),
        ({"source": "rows.csv", "delimiter": "::"}, "match pattern"),
        ({"source": "rows.csv", "delimiter": '"'}, "must be different characters"),
        ({"source": "rows.csv", "header": False}, "names of the columns are required"),
        ({"source": "rows.csv", "thousands": "."}, "decimal and thousands must be different"),
        ({"source": "rows.csv", "numbers": ["a"]}, "say how they are written"),
        ({"source": "rows.jsonl", "decimal": ","}, "decimal: no meaning for a source of format jsonl"),
        ({"source": "rows.csv", "header": True, "columns": ["a"]}, "the header has the names already"),
        ({"source": "rows.csv", "columns": ["a", "a"]}, "two columns have the name a"),
        ({"source": "rows.csv", "rename": {"a": "c", "b": "c"}}, "two columns have the name c"),
        ({"source": "rows.csv", "path_pattern": "("}, "not a valid regular expression"),
        ({"source": "rows.csv", "path_pattern": "(a)"}, "must be a named group"),
        ({"source": "pictures", "format": "images"}, "images need `L` (grey) or `RGB` (colour)"),
        ({"source": "a/${DATA}/rows.csv"}, "must be the first folder of a path"),
        ({"source": "${DATA}x/rows.csv"}, "must be the first folder of a path"),
        ({"source": "a", "labels": "b${L}", "format": "idx"}, "must be the first folder of a path"),
        ({"source": "rows.jsonl", "records": "a"}, "records: no meaning for a source of format jsonl"),
        (
            {"sources": [{"source": "a.csv", "records": "a", "part": "test"}]},
            "records: no meaning for a source of format csv",
        ),
        (
            {"sources": [{"source": "a.json", "part": "test"}], "records": "a"},
            "records: set it for each of the `sources`",
        ),
        ({"sources": [{"source": "a", "files": "b", "part": "test"}], "format": "idx"}, "files: no meaning"),
        ({"sources": [{"source": "a.csv", "files": "(", "part": "test"}]}, "not a valid regular expression"),
        (
            {
                "sources": [
                    {"source": "a.csv", "part": "train", "values": {"a": "x"}},
                    {"source": "b.csv", "part": "test"},
                ]
            },
            "values: all sources must have the same columns",
        ),
        (QUERY, "needs `query` and `uri_variable`"),
        ({**QUERY, "query": "select 1"}, "needs an ORDER BY"),
    ],
)
def test_an_inconsistent_source_is_refused(data: dict[str, Any], message: str):
    with pytest.raises(ValidationError) as caught:
        DataSource(**data)
    assert message in str(caught.value)


def test_local_paths_become_absolute_and_remote_ones_are_unchanged():
    folder = Path("/recipes")
    assert DataSource(source="rows.csv").with_absolute_paths(folder).source == "/recipes/rows.csv"
    assert DataSource(source="/data/rows.csv").with_absolute_paths(folder).source == "/data/rows.csv"
    assert DataSource(source="delta:table").with_absolute_paths(folder).source == "delta:/recipes/table"
    assert (
        DataSource(source="iceberg:t/v1.metadata.json").with_absolute_paths(folder).source
        == "iceberg:/recipes/t/v1.metadata.json"
    )
    for remote in ("s3://b/rows.csv", "hdfs://h/rows.csv", "delta:s3://b/t", "iceberg:c.t", "hive:d.t", "sklearn:iris"):
        assert DataSource(source=remote).with_absolute_paths(folder).source == remote
    data = DataSource(sources=[{"source": "a", "labels": "b", "part": "test"}], format="idx").with_absolute_paths(
        folder
    )
    assert (data.source_files[0].source, data.source_files[0].labels) == ("/recipes/a", "/recipes/b")
    assert DataSource(source="a", labels="../b", format="idx").with_absolute_paths(folder).labels == "/b"
    assert DataSource(source="${DATA}/rows.csv").with_absolute_paths(folder).source == "${DATA}/rows.csv"


def _snippets() -> list[str]:
    page = Path(__file__).resolve().parents[3] / "docs" / "sources.md"
    return re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("snippet", _snippets())
def test_every_snippet_of_the_documentation_is_valid(snippet: str):
    assert DataSource.model_validate(yaml.safe_load(snippet)["data"]).kind
