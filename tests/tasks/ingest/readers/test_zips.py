"""Files in a zip are read like files in a folder."""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import ingest, locate_source


def write_zip(path: Path, files: dict[str, str | bytes]) -> str:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return str(path)


def test_files_of_the_format_are_read_in_the_order_of_their_paths(ingest_rows, tmp_path: Path) -> None:
    files = {
        "rows/y=2/b.csv.gz": gzip.compress(b"a\n3\n"),
        "rows/y=1/a.csv": "a\n1\n2\n",
        "__MACOSX/rows/._a.csv": "x",
        "README.md": "# rows",
        "rows/.hidden.csv": "x",
    }
    result = ingest_rows(source=write_zip(tmp_path / "rows.zip", files), format="csv")
    assert result.rows == [{"a": "1", "y": "1"}, {"a": "2", "y": "1"}, {"a": "3", "y": "2"}]


def test_a_single_file_is_read_whatever_its_suffix(ingest_rows, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "rows.zip", {"adult.data": "a;b\n1;2\nx\n"})
    result = ingest_rows(source=source, format="csv", delimiter=";")
    assert result.rows == [{"a": "1", "b": "2"}]
    assert [(file, line) for file, line, *_ in result.malformed] == [("adult.data", 3)]


def test_files_with_types_are_read(ingest_rows, tmp_path: Path) -> None:
    stream = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2]}), stream)
    source = write_zip(tmp_path / "rows.zip", {"rows.parquet": stream.getvalue(), "licence.txt": "x"})
    assert ingest_rows(source=source, format="parquet").rows == [{"a": 1}, {"a": 2}]


def test_files_with_other_columns_are_told_apart_by_the_option_files(ingest_rows, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "rows.zip", {"train.csv": "a,b\n1,2\n", "sample.csv": "c\n1\n"})
    with pytest.raises(DataMissing, match=r"train\.csv has the columns a, b(.|\n)*by `files`"):
        ingest_rows(source=source, format="csv")
    assert ingest_rows(source=source, format="csv", files="^train").rows == [{"a": "1", "b": "2"}]
    with pytest.raises(DataMissing, match=r"no file has 'x' in its path(.|\n)*the files are sample\.csv, train\.csv"):
        ingest_rows(source=source, format="csv", files="x")


def test_a_zip_that_cannot_be_read_is_refused(home: Path, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "rows.zip", {"a.csv": "a\n" + "".join(f"{n * n}\n" for n in range(9_999))})
    content = bytearray(Path(source).read_bytes())

    def ingest_zip() -> None:
        ingest(locate_source(DataSource(source=source, format="csv")))

    Path(source).write_bytes(bytes(content[:3_000]) + bytes(9) + bytes(content[3_009:]))
    with pytest.raises(DataMissing, match=r"cannot be read: (Error|Bad CRC)"):
        ingest_zip()
    Path(source).write_bytes(bytes(content[:900]))
    with pytest.raises(DataMissing, match="cannot be read: File is not a zip file"):
        ingest_zip()
    position = content.rindex(b"PK\x01\x02")
    content[position + 8] |= 1  # the bit of a password in the directory
    Path(source).write_bytes(bytes(content))
    with pytest.raises(DataMissing, match="it has a password"):
        ingest_zip()
    write_zip(tmp_path / "rows.zip", {"a.txt": "x", "b.txt": "x"})
    with pytest.raises(DataMissing, match=r"none of its files is csv: a\.txt, b\.txt"):
        ingest_zip()
