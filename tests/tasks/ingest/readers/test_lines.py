"""JSON lines and text files."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.base import MalformedWriter
from bloomery.tasks.ingest.readers.json_files import jsonlines
from tests.examples import examples
from tests.json_rows import JSON_ROWS


def test_json_lines_have_the_union_of_all_keys_and_the_wider_type(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    lines = ['{"a": 1, "b": null}', '{"a": 2.5, "c": "2020-01-01"}', "", '{"b": [1, null], "d": {"e": true}}']
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    result = ingest_rows(source=str(path))
    assert not result.record.is_text
    assert result.table.schema.field("a").type == pa.float64()
    assert result.rows == [
        {"a": 1.0, "b": None, "c": None, "d": None},
        {"a": 2.5, "b": None, "c": "2020-01-01", "d": None},
        {"a": None, "b": [1, None], "c": None, "d": {"e": True}},
    ]


def test_malformed_json_lines_are_kept_with_reasons(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    malformed_lines = [
        b'{"a": 1',
        b"[1]",
        b"null",
        b'{"a": "\xff"}',
        b'{"a": "abc"}',
        b'{"a": 1, "a": 2}',
        b'{"a": 9223372036854775808}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 100_000,
    ]
    path.write_bytes(b"\n".join([b'{"a": 1}', *malformed_lines, *[b'{"a": 9223372036854775807}'] * 39]))
    result = ingest_rows(source=str(path))
    assert [row["a"] for row in result.rows] == [1, *[2**63 - 1] * 39]
    assert [line for _, line, _, _ in result.malformed] == list(range(2, 11))
    reasons = [reason for *_, reason in result.malformed]
    assert reasons[1:8] == [
        "not a JSON object, but array",
        "not a JSON object, but null",
        "bytes that are not utf-8",
        'column a: "abc" is no number, unlike nearly all other values',
        "the key 'a' twice",
        "column a: the integer 9223372036854775808 does not fit into 64 bits",
        "half of a surrogate pair, which is no text",
    ]


@pytest.mark.parametrize(
    ("second", "values"),
    [
        ('{"a": "x"}', ["1", "x"]),
        ('{"a": true}', ["1", "true"]),
        ('{"a": {"b": "é"}}', ["1", '{"b": "é"}']),
        ('{"a": 9223372036854775808}', ["1", "9223372036854775808"]),
        ('{"a": NaN, "b": "x"}', [1.0, math.nan]),
        ('{"a": "2"}', [1, 2]),
        ('{"a": "2.5"}', [1.0, 2.5]),
        ('{"a": "007"}', ["1", "007"]),
        ('{"a": 2, "e": {}}', [1, 2]),
    ],
)
def test_a_column_with_values_of_several_types_holds_them_all(
    ingest_rows, tmp_path: Path, second: str, values: list[object]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{second}\n')
    result = ingest_rows(source=str(path))
    assert str([row["a"] for row in result.rows]) == str(values)
    assert not result.malformed


def test_files_of_json_lines_share_the_types_of_their_columns(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"a": "n/a", "b": NaN, "c": {"d": 1}}\n')
    (tmp_path / "2.jsonl").write_text("\n".join(['{"a": 1, "b": "x", "c": {"d": "y"}}'] * 40))
    result = ingest_rows(source=str(tmp_path / "*.jsonl"))
    assert result.table.schema.field("a").type == pa.int64()
    assert result.rows[0] == {"a": 1, "b": "x", "c": {"d": "y"}}
    (malformed,) = result.malformed
    assert malformed[0] == "1.jsonl"
    assert 'column a: "n/a" is no number' in malformed[3]
    result = ingest_rows(source=str(tmp_path / "*.jsonl"), missing={"a": ["n/a"]})
    assert result.rows[0] == {"a": None, "b": None, "c": {"d": "1"}}
    assert not result.malformed


def test_columns_of_numbers_are_read_from_texts(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text("\n".join(['{"a": "1", "b": "1"}', '{"a": "2.5", "b": "2"}']))
    assert ingest_rows(source=str(tmp_path / "*.jsonl"), numbers=["a"]).rows == [
        {"a": 1.0, "b": "1"},
        {"a": 2.5, "b": "2"},
    ]


def test_files_of_json_lines_may_have_different_keys(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "2.jsonl").write_text('{"b": "x", "a": 0.5}\n')
    assert ingest_rows(source=str(tmp_path / "*.jsonl")).rows == [{"a": 1.0, "b": None}, {"a": 0.5, "b": "x"}]


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(JSON_ROWS)
def test_rows_written_by_a_json_writer_are_read_back(tmp_path: Path, rows: list[dict]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSource(source=str(path))
    with MalformedWriter(tmp_path / "malformed.parquet") as malformed:
        result = jsonlines.read(data, data.source_files[0], malformed)
        rows_read = [row for batch in result.batches for row in batch.to_pylist()]
    assert malformed.num_lines == 0
    assert rows_read == [{name: row.get(name) for name in result.schema.names} for row in rows]


def test_text_has_a_row_per_line(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(b"one, two\n\n\xff\nlast")
    result = ingest_rows(source=str(path), row_id="id")
    assert result.rows == [{"id": "0", "text": "one, two"}, {"id": "1", "text": ""}, {"id": "2", "text": "last"}]
    assert result.malformed == [("words.txt", 3, "\\xff", "bytes that are not utf-8")]


def test_text_may_have_a_row_per_file_with_its_folder_as_label(ingest_rows, tmp_path: Path) -> None:
    for name, text in {"pos/1.txt": "good\nfilm", "neg/2.txt": "bad"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    assert ingest_rows(source=str(tmp_path), format="text", unit="file").rows == [
        {"path": "neg/2.txt", "label": "neg", "text": "bad"},
        {"path": "pos/1.txt", "label": "pos", "text": "good\nfilm"},
    ]
