"""Delimited text is read cell by cell as text, and malformed rows are kept with their line numbers."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.readers import delimited
from bloomery.tasks.ingest.readers.base import MalformedWriter
from bloomery.tasks.ingest.readers.csv_lexer import Lexer, split_records
from bloomery.tasks.ingest.stage import locate_source
from tests.examples import examples


def test_cells_are_text_and_missing_cells_are_null(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,when,n\n1,2020-01-01,007\n2,,NA\n")
    result = ingest_rows(source=str(path), missing=["NA", ""])
    assert result.rows == [{"id": "1", "when": "2020-01-01", "n": "007"}, {"id": "2", "when": None, "n": None}]
    assert result.record.is_text
    assert set(result.table.schema.types) == {pa.string()}


def test_white_space_is_stripped_before_missing_markers_are_matched(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(" a , b\n x , ? \n\ty,  z\n   \n")
    result = ingest_rows(source=str(path), strip=True, missing=["?"])
    assert result.rows == [{"a": "x", "b": None}, {"a": "y", "b": "z"}]
    assert result.malformed == []


def test_malformed_lines_are_kept_with_their_number_and_text(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'a,b\n1,2\n\n"x\ny",3\nshort\n4,5,6\n7,8\n9,\xff\n"q""q",r\n\n' + b"z" * 2000 + b"\n")
    result = ingest_rows(source=str(path))
    assert [tuple(row.values()) for row in result.rows] == [("1", "2"), ("x\ny", "3"), ("7", "8"), ('q"q', "r")]
    assert result.malformed == [
        ("rows.csv", 6, "short", "1 cell(s), where 2 are required"),
        ("rows.csv", 7, "4,5,6", "3 cell(s), where 2 are required"),
        ("rows.csv", 9, "9,\\xff", "bytes in column b that are not utf-8"),
        ("rows.csv", 12, "z" * 1000, "1 cell(s), where 2 are required"),
    ]


def test_a_declared_dialect_is_used(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.dat"
    text = "made on a Monday\n# a note, with a ' quote\n'Ä;b';1\n# 'another\nc\\;d;2\n"
    path.write_text(text, encoding="cp1252")
    options = {"format": "csv", "encoding": "cp1252", "delimiter": ";", "quote": "'", "escape": "\\"}
    result = ingest_rows(source=str(path), **options, columns=["x", "n"], skip_lines=1, comment="#")
    assert [tuple(row.values()) for row in result.rows] == [("Ä;b", "1"), ("c;d", "2")]
    assert result.malformed == []


def test_rows_with_bytes_outside_the_encoding_are_malformed(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"a,b\n\x80,1\n\x81,2\n")  # cp1252 has a euro sign, and nothing at 0x81
    result = ingest_rows(source=str(path), encoding="cp1252")
    assert result.rows == [{"a": "€", "b": "1"}]
    assert [row[1:3] for row in result.malformed] == [(3, "\\x81,2")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_a_byte_order_mark_is_not_part_of_the_first_name(ingest_rows, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("\ufeffä,b\r\n1,2\r\n" if encoding == "utf-8" else "ä,b\r\n1,2\r\n", encoding=encoding)
    assert ingest_rows(source=str(path), encoding=encoding).rows == [{"ä": "1", "b": "2"}]


def test_compressed_and_partitioned_files_are_read_in_the_order_of_their_paths(ingest_rows, tmp_path: Path) -> None:
    texts = {"day=2/b.csv.gz": "x,y\n3,4\n", "day=1/a.csv.bz2": "y,x\n2,1\n", "day=2/c.csv": "x,y\n5,6\n"}
    for name, text in texts.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        compress = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)
        path.write_bytes(compress(text.encode()))
    (tmp_path / "in" / "_SUCCESS").touch()
    with pa.CompressedOutputStream(str(tmp_path / "in" / "day=2" / "d.csv.zst"), "zstd") as stream:
        stream.write(b"x,y\n7,8\n")
    result = ingest_rows(source=str(tmp_path / "in"), format="csv", row_id="id")
    assert [tuple(row.values()) for row in result.rows] == [
        ("0", "2", "1", "1"),
        ("1", "4", "3", "2"),
        ("2", "6", "5", "2"),
        ("3", "8", "7", "2"),
    ]
    assert result.table.schema.names == ["id", "y", "x", "day"]  # as the first file has them


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "it is empty"),
        ("a,,b\n1,2,3\n", {}, "column 2 of its header has no name"),
        ("a,a\n1,2\n", {}, "two columns have the name a"),
        ("a,b\n1,2\n", {"rename": {"c": "d"}}, "no column c to rename"),
        ("a,b\n1,2\n", {"rename": {"a": "b"}}, "two columns would have the name b"),
        ("a,b\n1,2\n", {"row_id": "a"}, "the source already has a column a"),
        ("a,b\n1,2\n", {"path_pattern": r"(?P<month>\d+)"}, "does not match path_pattern"),
        ("a,b\n1,2\n", {"path_pattern": "(?P<a>rows)"}, "column 'a' is in the file and in its path"),
    ],
)
def test_a_file_that_does_not_match_the_recipe_is_reported(
    ingest_rows, tmp_path: Path, text: str, options: dict, message: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(Exception, match=message) as caught:
        ingest_rows(source=str(path), **options)
    assert caught.value.exit_code == 2


def test_files_with_different_columns_are_reported(ingest_rows, tmp_path: Path) -> None:
    (tmp_path / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "2.csv").write_text("a,c\n1,2\n")
    with pytest.raises(DataMissing, match=r"2\.csv has the columns a, c"):
        ingest_rows(source=str(tmp_path / "*.csv"))


def test_a_wrong_delimiter_fails_early(ingest_rows, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(delimited, "MAX_MALFORMED_ROWS", 100)
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "1;2\n" * 200)
    with pytest.raises(DataMissing, match="more than 100 lines are malformed; the first has 1 cell"):
        ingest_rows(source=str(path))


def test_an_unclosed_quote_is_reported_with_its_line(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n"3,4\n' + "5,6\n" * 3_000_000)
    with pytest.raises(DataMissing, match="the row at line 3 is longer than"):
        ingest_rows(source=str(path))


def test_rows_swallowed_by_a_quote_are_counted_in_the_reason(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n"3,4\n5,6\n7,8\n')
    assert ingest_rows(source=str(path)).malformed == [
        ("rows.csv", 3, '"3,4\n5,6\n7,8', "1 cell(s), where 2 are required; quotes make one row of 3 lines")
    ]


def test_a_truncated_file_is_reported(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + random.Random(0).randbytes(50_000).hex().encode() + b",1\n")[:-500])
    with pytest.raises(DataMissing, match=r"rows\.csv\.gz cannot be read"):
        ingest_rows(source=str(path))


def test_the_digest_does_not_depend_on_the_block_size(home: Path, ingest_rows, tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "".join(f'{n},"x{n % 7}\n"\n' if n % 5 else "bad\n" for n in range(150_000)))
    one_block = ingest_rows(source=str(path)).record
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 10_000)
    small_blocks = ingest_rows(source=str(path), missing=[""]).record  # the default as an explicit option: another key
    assert one_block.uri != small_blocks.uri
    assert one_block.digest == small_blocks.digest
    assert pq.ParquetFile(home / one_block.uri).metadata.row_group(0).num_rows == 65_536


cells = st.text(st.sampled_from("ab ,\"\n\r'ä"), max_size=6)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(cells, cells.map("x".__add__)), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_rows_written_by_a_csv_writer_are_read_back(tmp_path: Path, rows: list[tuple[str, str]], end: str) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([("a", "b"), *rows])
    data = DataSource(source=str(path), missing=[])
    with MalformedWriter(tmp_path / "malformed.parquet") as malformed:
        result = delimited.read(data, data.source_files[0], malformed)
        rows_read = [tuple(row.values()) for batch in result.batches for row in batch.to_pylist()]
    assert malformed.num_lines == 0
    assert rows_read == rows


@settings(max_examples=examples(200), deadline=None)
@given(
    st.lists(st.sampled_from(["a,b", '"x', 'y",z', '"q""', ',""', 'b"c', "", '"a",b', "'", "a\rb", "\r"]), max_size=10)
)
def test_the_lexer_finds_as_many_rows_as_arrow(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines).encode()
    rows = [row for _, row in split_records(io.BufferedReader(io.BytesIO(text)), Lexer(b",", b'"', b""), 1)]
    assert len(rows) == _num_rows_by_arrow(text)


def _num_rows_by_arrow(text: bytes) -> int:
    import pyarrow.csv as pcsv

    invalid_rows: list[int] = []
    try:
        reader = pcsv.open_csv(
            pa.py_buffer(text),
            read_options=pcsv.ReadOptions(column_names=["a", "b"], use_threads=False),
            parse_options=pcsv.ParseOptions(
                newlines_in_values=True, invalid_row_handler=lambda row: invalid_rows.append(row.number) or "skip"
            ),
        )
    except pa.ArrowInvalid:  # nothing but blank lines
        return 0
    return reader.read_all().num_rows + len(invalid_rows)


def test_the_digest_depends_on_content_and_options(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    first = locate_source(DataSource(source=str(path))).digest
    assert locate_source(DataSource(source=str(path), format="csv")).digest == first
    assert locate_source(DataSource(source=str(path), strip=True)).digest != first
    path.write_text("a,b\n1,3\n")
    assert locate_source(DataSource(source=str(path))).digest != first
