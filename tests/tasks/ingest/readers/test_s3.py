"""Files in S3, on a mock server."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.stage import locate_source

pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that puts an object into `s3://rows`."""
    boto3 = pytest.importorskip("boto3")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="rows")
    yield lambda key, body: client.put_object(Bucket="rows", Key=key, Body=body)
    server.stop()


def test_objects_are_read_like_files(ingest_rows, bucket, tmp_path: Path) -> None:
    bucket("in/day=1/a.csv", b"x,y\n1,2\nbad\n")
    bucket("in/day=2/b.csv.gz", gzip.compress(b"x,y\n3,4\n"))
    bucket("in/notes.txt", b"no rows")
    result = ingest_rows(source="s3://rows/in", format="csv")
    assert [tuple(row.values()) for row in result.rows] == [("1", "2", "1"), ("3", "4", "2")]
    assert result.malformed == [("day=1/a.csv", 3, "bad", "1 cell(s), where 2 are required")]
    assert ingest_rows(source="s3://rows/in/day=2/*.csv.gz").rows == [{"x": "3", "y": "4"}]
    pq.write_table(pa.table({"x": [1]}), tmp_path / "rows.parquet")
    bucket("rows.parquet", (tmp_path / "rows.parquet").read_bytes())
    assert ingest_rows(source="s3://rows/rows.parquet").rows == [{"x": 1}]


def test_the_digest_of_an_object_depends_on_its_content(bucket) -> None:
    bucket("a.csv", b"x\n1\n")
    first = locate_source(DataSource(source="s3://rows/a.csv")).digest
    assert locate_source(DataSource(source="s3://rows/a.csv")).digest == first
    bucket("a.csv", b"x\n2\n")
    assert locate_source(DataSource(source="s3://rows/a.csv")).digest != first


@pytest.mark.parametrize("source", ["s3://rows/nowhere.csv", "s3://nobucket/a.csv", "s3://rows/no-*.csv"])
def test_a_missing_object_is_reported(bucket, source: str) -> None:
    with pytest.raises(DataMissing, match="there is no csv file"):
        locate_source(DataSource(source=source))


def test_files_that_a_table_names_are_read_from_a_folder_in_s3(ingest_rows, bucket) -> None:
    for key, value in (("img/a.png", 7), ("img/b.png", None)):
        image = io.BytesIO()
        Image.new("L", (3, 2), value or 0).save(image, "PNG")
        bucket(key, b"no image" if value is None else image.getvalue())
    bucket("t/rows.csv", b"photo,y\na.png,1\nb.png,2\nc.png,3\n../t/rows.csv,4\ns3://rows/img/a.png,5\n")
    grey = {"kind": "image", "mode": "L"}
    result = ingest_rows(source="s3://rows/t/rows.csv", media={"photo": {**grey, "folder": "s3://rows/img"}})
    assert result.rows == [{"photo": [7] * 6, "y": "1"}, {"photo": [7] * 6, "y": "5"}]
    assert [(line, reason.removeprefix("column photo: ")) for _, line, _, reason in result.malformed] == [
        (2, "no image: no format that Pillow knows"),
        (3, "no such file"),
        (4, "a path outside the folder"),
    ]
    by_url = DataSource(source="s3://rows/t/rows.csv", media={"photo": grey})
    digest = locate_source(by_url).digest
    bucket("img/a.png", b"another one")
    with pytest.raises(DataMissing, match="can be decoded"):
        locate_source(by_url)
    bucket("img/a.png", image.getvalue())
    assert locate_source(by_url).digest != digest
