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
from bloomery.tasks.ingest.readers.base import MalformedWriter
from bloomery.tasks.ingest.readers.text_files import csv_faults, delimited
from bloomery.tasks.ingest.readers.text_files.csv_lexer import Lexer, split_lines, split_records
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
        ('title\n"a,b\n1,2\n', {"skip_lines": 1}, "a quote opens in line 2, where the header is required"),
        ("a,a\n1,2\n", {}, "two columns have the name a"),
        ("a,b\n1,2\n", {"decimal": ",", "numbers": ["c"]}, "numbers: there is no column c"),
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
    monkeypatch.setattr(csv_faults, "MAX_MALFORMED_ROWS", 100)
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + "1;2\n" * 200)
    with pytest.raises(DataMissing, match="more than 100 lines are malformed; the first has 1 cell"):
        ingest_rows(source=str(path))


UNCLOSED = 'a quote (") opens that does not close'


@pytest.mark.parametrize("block_size", [4 << 20, 300])
@pytest.mark.parametrize(
    ("lines", "unclosed"),
    [
        (['"3,4,no'], ['"3,4,no']),  # to the end of the file
        (['"3,4,no', "5,6,no", '"seven, eight",8,no'], ['"3,4,no']),  # closed by the quote that opens the next text
        (['"3,4,no', '"5,6,no', "7,8,no"], ['"3,4,no', '"5,6,no']),
        (['1,"3,no', "5,6,no", '7,8",no'], ['1,"3,no']),  # the row of three lines has three cells
        (['1,2,"no', "5,6,no"], ['1,2,"no']),
    ],
)
def test_lines_behind_an_unclosed_quote_stay_rows(
    ingest_rows, tmp_path: Path, monkeypatch, lines: list[str], unclosed: list[str], block_size: int
) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", block_size)
    path = tmp_path / "rows.csv"
    before = ['"two\nlines",1,yes', "short", *[f"{number},b,yes" for number in range(40)]]
    text = "".join(f"{line}\n" for line in ["a,b,c", *before, *lines, *[f"{number},b,no" for number in range(90)]])
    path.write_text(text)
    result = ingest_rows(source=str(path))
    assert [row["a"] for row in result.rows if row["c"] == "yes"] == ["two\nlines", *map(str, range(40))]
    assert [row[1:] for row in result.malformed] == [
        (4, "short", "1 cell(s), where 3 are required"),
        *((45 + lines.index(line), line, UNCLOSED) for line in unclosed),
    ]
    assert len(result.rows) == 41 + len(lines) - len(unclosed) + 90


def test_a_quote_that_never_closes_in_a_long_file_costs_one_line(ingest_rows, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(delimited, "MAX_ROW_BYTES", 100_000)
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n"3,4\n' + "5,6\n" * 60_000)  # more than a row may have
    result = ingest_rows(source=str(path))
    assert result.malformed == [("rows.csv", 3, '"3,4', UNCLOSED)]
    assert result.record.num_rows == 60_001


def test_a_malformed_row_with_odd_quotes_is_named_so(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b,c\n1,2,3\n"x","1,"no"\n"3,4,5')
    assert [row[1:] for row in ingest_rows(source=str(path)).malformed] == [
        (3, '"x","1,"no"', '2 cell(s), where 3 are required; check its quotes (")'),
        (4, '"3,4,5', '1 cell(s), where 3 are required; check its quotes (")'),
    ]


def test_many_unclosed_quotes_are_no_quotes(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n" + '"3,4\n' * 2_000)
    with pytest.raises(DataMissing, match=r"more than 1,000 lines a quote .* first in line 2") as caught:
        ingest_rows(source=str(path))
    assert "`quote`" in caught.value.remedy
    assert len(ingest_rows(source=str(path), quote="").rows) == 2_000


def test_texts_with_lines_stay_one_cell(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    text = 'Dear all,\n"come", or not,\n\n,\ncall'
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("text", "n"), *((text, number) for number in range(50))])
    result = ingest_rows(source=str(path))
    assert [row["text"] for row in result.rows] == [text] * 50
    assert result.malformed == []


def test_a_malformed_row_of_lines_is_one_row(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\n"3\n4",5,6\n7,8\n')
    assert ingest_rows(source=str(path)).malformed == [
        ("rows.csv", 3, '"3\n4",5,6', "3 cell(s), where 2 are required; quotes make one row of 2 lines")
    ]


def test_a_header_between_rows_is_malformed(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,2\na , "b"\n3,4\na,c\n')
    result = ingest_rows(source=str(path), strip=True, skip_initial_space=True)
    assert [row["a"] for row in result.rows] == ["1", "3", "a"]
    assert result.malformed == [("rows.csv", 3, 'a ,"b"', "it repeats the header")]


@pytest.mark.parametrize("header", ["a,b", "a,b,"])
def test_the_empty_cell_behind_a_trailing_delimiter_is_omitted(ingest_rows, tmp_path: Path, header: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(f"{header}\n1,2,\n3,4, \n5,6,7\n8,9\n")
    result = ingest_rows(source=str(path), trailing_delimiter=True, strip=True)
    assert [tuple(row.values()) for row in result.rows] == [("1", "2"), ("3", "4")]
    assert [row[1:] for row in result.malformed] == [
        (4, "5,6,7", "a cell behind the last of 2 column(s)"),
        (5, "8,9", "2 cell(s), where 3 are required"),
    ]


def test_spaces_in_front_of_quotes_are_skipped(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a, "b"\n1, "Smith, J"\n2,  "say ""a, ""b"""\n3, "two\n, ""lines"""\n4, five "six"\n')
    result = ingest_rows(source=str(path), skip_initial_space=True)
    assert [row["b"] for row in result.rows] == ["Smith, J", 'say "a, "b"', 'two\n, "lines"', ' five "six"']
    assert result.malformed == []


def test_white_space_may_align_cells_and_carriage_returns_end_lines(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'  a  b\r 1   "x  y"\r\r22\t z \r3\r')
    result = ingest_rows(source=str(path), delimiter=" ", skip_initial_space=True)
    assert [tuple(row.values()) for row in result.rows] == [("1", "x  y"), ("22", "z")]
    assert result.malformed == [("rows.csv", 5, "3", "1 cell(s), where 2 are required")]


def test_numbers_in_another_notation_are_rewritten(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a;b;c\n1.234,50 €;1,5;1,5\n(0,5);12 %;x\n;abc;\u22125\n", encoding="utf-8")
    options = {"delimiter": ";", "decimal": ",", "thousands": ".", "units": ["€", "%"]}
    result = ingest_rows(source=str(path), **options, numbers=["a", "b"])
    assert [tuple(row.values()) for row in result.rows] == [
        ("1234.50", "1.5", "1,5"),
        ("-0.5", "12", "x"),
        (None, "abc", "\u22125"),
    ]
    assert [row["c"] for row in ingest_rows(source=str(path), **options).rows] == ["1.5", "x", "-5"]


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


LEXER = Lexer(b",", b'"', b"")
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
    rows = [row for _, row in split_records(split_lines(io.BufferedReader(io.BytesIO(text))), LEXER, 1)]
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


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["a,b", '"x', 'y",z', '"q""', ',""', 'b"c', '"a",b', "'", '1,"2', "3,4"]), max_size=12))
def test_every_line_is_in_a_row_or_malformed(tmp_path: Path, lines: list[str]) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"{line}\n" for line in ["c,d", *lines]))
    data = DataSource(source=str(path))
    with MalformedWriter(tmp_path / "malformed.parquet") as malformed:
        result = delimited.read(data, data.source_files[0], malformed)
        rows = [row for batch in result.batches for row in batch.to_pylist()]
    texts = pq.read_table(tmp_path / "malformed.parquet")["text"].to_pylist()
    breaks = sum(cell.count("\n") for row in rows for cell in row.values() if cell)
    assert len(rows) + breaks + len(texts) + sum(text.count("\n") for text in texts) == len(lines)


def test_the_digest_depends_on_content_and_options(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    first = locate_source(DataSource(source=str(path))).digest
    assert locate_source(DataSource(source=str(path), format="csv")).digest == first
    assert locate_source(DataSource(source=str(path), strip=True)).digest != first
    path.write_text("a,b\n1,3\n")
    assert locate_source(DataSource(source=str(path))).digest != first
