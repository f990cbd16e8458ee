"""JSON documents that contain lists of rows."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.base import MalformedWriter
from bloomery.tasks.ingest.readers.json_files import json_documents
from bloomery.tasks.ingest.stage import ingest, locate_source
from tests.examples import examples
from tests.json_rows import JSON_ROWS


def write(folder: Path, document: Any, name: str = "rows.json") -> str:
    (folder / name).write_text(json.dumps(document))
    return str(folder / name)


def test_a_document_may_be_the_list_of_rows(ingest_rows, tmp_path: Path) -> None:
    result = ingest_rows(source=write(tmp_path, [{"a": 1, "b": None}, {"a": 2.5, "c": [True]}]))
    assert not result.record.is_text
    assert result.table.schema.field("a").type == pa.float64()
    assert result.rows == [{"a": 1.0, "b": None, "c": None}, {"a": 2.5, "b": None, "c": [True]}]


def test_lists_of_one_document_become_splits_with_constant_values(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.json.gz"
    document = {"in": {"train": [["hello", "greet"]], "test": [["bye", "leave"]]}, "odd": [["blue", "none"]]}
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    sources = [
        {"source": str(path), "records": "in.test", "part": "test", "values": {"scope": "in", "by": "a"}},
        {"source": str(path), "records": "in.train", "part": "train", "values": {"by": "b", "scope": "in"}},
        {"source": str(path), "records": "odd", "part": "train", "values": {"scope": "out", "by": "c"}},
    ]
    assert ingest_rows(sources=sources, columns=["text", "intent"], row_id="id").rows == [
        {"id": 0, "text": "bye", "intent": "leave", "scope": "in", "by": "a", "part": "test"},
        {"id": 1, "text": "hello", "intent": "greet", "scope": "in", "by": "b", "part": "train"},
        {"id": 2, "text": "blue", "intent": "none", "scope": "out", "by": "c", "part": "train"},
    ]


def test_malformed_items_are_kept_with_reasons(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    deep = "[" * 300 + "]" * 300
    items = ['{"a": 1}', "[1]", "null", '{"a": "abc"}', '{"a": {"b": 1, "b": 2}}', '{"a": 9223372036854775808}']
    items += [json.dumps({"a": chr(0xD800)}), deep, *['{"a": 2}'] * 38, '{"a": NaN}']
    path.write_text('{"all": [' + ", ".join(items) + "]}")
    result = ingest_rows(source=str(path), records="all")
    numbers = [row["a"] for row in result.rows]
    assert numbers[:-1] == [1, *[2] * 38]
    assert math.isnan(numbers[-1])
    assert [(file, line) for file, line, _, _ in result.malformed] == [("rows.json", None)] * 7
    assert [reason for *_, reason in result.malformed] == [
        "item 2 of all: not a JSON object, but array",
        "item 3 of all: not a JSON object, but null",
        'item 4 of all: column a: "abc" is no number, unlike nearly all other values',
        "item 5 of all: the key 'b' twice",
        "item 6 of all: column a: the integer 9223372036854775808 does not fit into 64 bits",
        "item 7 of all: half of a surrogate pair, which is no text",
        "item 8 of all: not a JSON object, but array",
    ]


def test_arrays_of_the_wrong_length_are_malformed(ingest_rows, tmp_path: Path) -> None:
    result = ingest_rows(source=write(tmp_path, [[1, "x"], [1], {"a": 1}, [2, None]]), columns=["a", "b"])
    assert result.rows == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert [reason for *_, reason in result.malformed] == [
        "item 2: 1 value(s), where 2 are required",
        "item 3: not a JSON array, but object",
    ]


@pytest.mark.parametrize(
    ("text", "records", "message"),
    [
        ('{"a": [', None, "cannot be read as JSON"),
        ("\udcff", None, "cannot be read as JSON"),
        ("[" * 100_000, None, "too deep"),
        ('{"a": []}', None, "the document is object"),
        ('{"a": []}', "b", "no 'b' of 'b'; it has a"),
        ('{"a": []}', "a.b", "no 'b' of 'a.b'; it is array"),
        ('{"a": 1, "a": []}', "a", "the key 'a' twice"),
        ('{"response": {"data": [{"x": 1}]}}', "data", "no 'data' of 'data'; it has response"),
    ],
)
def test_a_document_without_readable_rows_is_refused(
    ingest_rows, tmp_path: Path, text: str, records: str | None, message: str
) -> None:
    (tmp_path / "rows.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DataMissing, match=message):
        ingest_rows(source=str(tmp_path / "rows.json"), **({"records": records} if records else {}))


def test_an_error_about_the_list_of_rows_names_those_of_the_document(ingest_rows, tmp_path: Path) -> None:
    document = {"response": {"data": [{"x": 1}], "names": ["x"], "other": {"rows": [[1]]}}}
    with pytest.raises(DataMissing) as raised:
        ingest_rows(source=write(tmp_path, document))
    assert "`records` in the recipe's `data`, to response.data or response.other.rows" in raised.value.remedy


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1", "utf-8-sig"])
def test_a_document_may_have_another_encoding(ingest_rows, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "rows.json").write_text('[{"a": "é"}]', encoding=encoding)
    assert ingest_rows(source=str(tmp_path / "rows.json"), encoding=encoding).rows == [{"a": "é"}]


def test_two_lists_of_one_file_have_different_digests(home: Path, tmp_path: Path) -> None:
    path = write(tmp_path, {"a": [{"x": 1}], "b": [{"x": 2}]})
    assert (
        locate_source(DataSource(source=path, records="a")).digest
        != locate_source(DataSource(source=path, records="b")).digest
    )


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON_ROWS)
def test_rows_written_by_a_json_writer_are_read_back(tmp_path: Path, rows: list[dict]) -> None:
    data = DataSource(source=write(tmp_path, {"rows": rows}), records="rows")
    with MalformedWriter(tmp_path / "malformed.parquet") as malformed:
        result = json_documents.read(data, data.source_files[0], malformed)
        rows_read = [row for batch in result.batches for row in batch.to_pylist()]
    assert malformed.num_lines == 0
    assert rows_read == [{name: row.get(name) for name in result.schema.names} for row in rows]


@pytest.mark.parametrize(
    "document",
    [
        {"a": [1, 2], "b": ["x", None]},
        {"a": {"0": 1, "7": 2}, "b": {"0": "x", "7": None}},
        {"in": {"a": [1, 2], "b": ["x", None]}},
        {"0": {"a": 1, "b": "x"}, "7": {"a": 2, "b": None}},
    ],
)
def test_an_object_of_columns_is_a_table(ingest_rows, tmp_path: Path, document: Any) -> None:
    options = {"records": "in"} if "in" in document else {}
    result = ingest_rows(source=write(tmp_path, document), **options)
    assert result.rows == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]


def test_columns_of_several_lengths_are_no_table(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="the document is object"):
        ingest(locate_source(DataSource(source=write(tmp_path, {"a": [1, 2], "b": [1]}))))


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_column_that_is_left_out_may_have_values_of_any_type(kind: str, ingest_rows, tmp_path: Path) -> None:
    rows = [{"a": 1, "b": {}, "c": 1}, {"a": 2, "b": {}, "c": "x"}]
    text = json.dumps(rows) if kind == "json" else "\n".join(map(json.dumps, rows))
    source = str(tmp_path / f"rows.{kind}")
    Path(source).write_text(text)
    assert ingest_rows(source=source, drop=["b", "c"]).rows == [{"a": 1}, {"a": 2}]
    assert ingest_rows(source=source).rows == [{"a": 1, "b": None, "c": "1"}, {"a": 2, "b": None, "c": "x"}]
