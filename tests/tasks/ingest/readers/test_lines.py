"""JSON lines and text files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers.base import MalformedWriter
from bloomery.tasks.ingest.readers.json_files import jsonlines
from tests.examples import examples


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
        b'{"a": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": 9223372036854775808}',
        b'{"a": "\\ud800"}',
        b'{"a": ' + b"[" * 100_000,
    ]
    path.write_bytes(b"\n".join([b'{"a": 1}', *malformed_lines, b'{"a": 9223372036854775807}']))
    result = ingest_rows(source=str(path))
    assert [row["a"] for row in result.rows] == [1, 2**63 - 1]
    assert [line for _, line, _, _ in result.malformed] == list(range(2, 11))
    reasons = [reason for *_, reason in result.malformed]
    assert reasons[1:8] == [
        "not a JSON object, but array",
        "not a JSON object, but null",
        "bytes that are not utf-8",
        "not JSON: NaN is no number",
        "the key 'a' twice",
        "an integer that does not fit into 64 bits",
        "half of a surrogate pair, which is no text",
    ]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ('{"a": "x"}', 'line 2, column a: found "x", but earlier values are of type integer'),
        ('{"a": true}', "line 2, column a: found true, but earlier values are of type integer"),
        ('{"a": {"b": 1}}', "column a: found .*, but earlier values are of type integer"),
        ('{"a": 2, "e": {}}', "column e has objects without a key"),
    ],
)
def test_a_column_with_two_types_is_reported_with_its_line(
    ingest_rows, tmp_path: Path, second: str, message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{second}\n')
    with pytest.raises(DataMissing, match=message):
        ingest_rows(source=str(path))


def test_files_of_json_lines_may_have_different_keys(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "1.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "2.jsonl").write_text('{"b": "x", "a": 0.5}\n')
    assert ingest_rows(source=str(tmp_path / "*.jsonl")).rows == [{"a": 1.0, "b": None}, {"a": 0.5, "b": "x"}]


@settings(max_examples=examples(50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.fixed_dictionaries(
            {"n": st.none() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)},
            optional={"t": st.none() | st.text(st.characters(codec="utf-8"), max_size=5), "l": st.lists(st.booleans())},
        ),
        max_size=6,
    )
)
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
