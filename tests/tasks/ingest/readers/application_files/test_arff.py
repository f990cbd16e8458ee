"""ARFF files of Weka: declared attributes, dense and sparse rows."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.readers.application_files import arff
from bloomery.tasks.ingest.readers.base import DECLARED_VALUES, MalformedWriter
from bloomery.tasks.ingest.stage import ingest, locate_source

HEADER = """% a comment
@RELATION 'my rows'

@ATTRIBUTE\t'sepal length'\tNUMERIC
@attribute count integer
@attribute day DATE "yyyy-MM-dd"
@attribute note string
@attribute class {'a b', c,1}
@DATA
"""


def test_rows_have_the_types_of_their_attributes(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.arff"
    rows = ["5.1, 3, '2024-01-02', \"it's, here\", 'a b'", "% a comment", "", "?,?,?,?,?", "{1 4, 3 x, 4 1}"]
    path.write_text(HEADER + "\n".join(rows))
    result = ingest_rows(source=str(path))
    assert not result.record.is_text
    assert result.table.schema.types == [pa.float64(), pa.int64(), pa.string(), pa.string(), pa.string()]
    assert [tuple(row.values()) for row in result.rows] == [
        (5.1, 3, "2024-01-02", "it's, here", "a b"),
        (None, None, None, None, None),
        (0.0, 4, None, "x", "1"),
    ]
    assert not result.malformed


def test_blanks_need_no_quotes(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.arff"
    header = "@relation r\n@attribute 'a b' numeric\n@attribute cause {External Causes, 'a, b c',Skin }\n"
    path.write_text(f"{header}@attribute note string\n@data\n1,External Causes,so far\n2,'a, b c', Skin \n")
    result = ingest_rows(source=str(path))
    assert [tuple(row.values()) for row in result.rows] == [(1, "External Causes", "so far"), (2, "a, b c", "Skin")]
    assert not result.malformed


def test_rows_that_do_not_fit_the_header_are_malformed(ingest_rows, tmp_path: Path) -> None:
    path = tmp_path / "rows.arff"
    rows = ["1,2", "x,2,d,n,c", "1,2,d,n,z", "1,2,'d,n,c", "{9 1}", "1,2,d,n,c"]
    path.write_bytes((HEADER + "\n".join(rows)).encode() + b"\n1,2,d,\xff,c\n")
    result = ingest_rows(source=str(path))
    assert len(result.rows) == 1
    assert [(line, reason) for _, line, _, reason in result.malformed] == [
        (10, "another number of values than attributes"),
        (11, "'x' is no number"),
        (12, "Data value z not found in nominal declaration"),
        (13, "Invalid layout of the ARFF file"),
        (14, "another number of values than attributes"),
        (16, "bytes that are not of the file's encoding"),
    ]


def test_declared_values_are_kept_for_the_contract(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.arff"
    path.write_text(HEADER + "1,2,d,n,c\n")
    with MalformedWriter(tmp_path / "malformed.parquet") as malformed:
        schema = arff.read(DataSource(source=str(path)), SourceFile(source=str(path)), malformed).schema
    assert json.loads(schema.field("class").metadata[DECLARED_VALUES]) == ["a b", "c", "1"]


def test_an_encoding_and_a_compression_are_read(ingest_rows, tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "rows.arff.gz"
    path.write_bytes(gzip.compress("@relation r\n@attribute größe {ä,ö}\n@data\nä\n".encode("latin-1")))
    assert ingest_rows(source=str(path), encoding="latin-1").rows == [{"größe": "ä"}]
    with pytest.raises(DataMissing, match="its header is not utf-8"):
        ingest(locate_source(DataSource(source=str(path))))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "it has no line @data"),
        ("@relation r\n@attribute a relational\n@data\n", "its header is invalid: Bad @ATTRIBUTE type"),
        ("@relation r\n@attribute a real\n@attribute a real\n@data\n", "its header is invalid"),
        ("", "it has no line @data"),
    ],
)
def test_a_file_without_a_header_is_refused(text: str, message: str, home: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.arff"
    path.write_text(text)
    with pytest.raises(DataMissing, match=message):
        ingest(locate_source(DataSource(source=str(path))))
