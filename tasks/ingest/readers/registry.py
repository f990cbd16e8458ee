"""The reader of each format."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.readers import columnar, sklearn_datasets
from bloomery.tasks.ingest.readers.application_files import arff, huggingface, numpy_arrays, sqlite, stata, xlsx
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.databases import hive, lakehouse, sql
from bloomery.tasks.ingest.readers.json_files import json_documents, jsonlines
from bloomery.tasks.ingest.readers.media import audio, idx, images
from bloomery.tasks.ingest.readers.sequences import sequence_files
from bloomery.tasks.ingest.readers.text_files import delimited, text


class Reader(NamedTuple):
    """`identify` returns, as JSON, what changes when the content does; `read` returns the rows."""

    identify: Callable[[DataSource, SourceFile], list[object]]
    read: Callable[[DataSource, SourceFile, MalformedWriter], RowStream]


def _read_csv(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    read = sequence_files.read if data.unit == "file" else delimited.read
    return read(data, origin, malformed)


def _read_numpy(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    read = sequence_files.read if data.unit == "file" else numpy_arrays.read
    return read(data, origin, malformed)


READERS: dict[str, Reader] = {
    "parquet": Reader(locations.identify_files, columnar.read),
    "orc": Reader(locations.identify_files, columnar.read),
    "arrow": Reader(locations.identify_files, columnar.read),
    "csv": Reader(locations.identify_files, _read_csv),
    "jsonl": Reader(locations.identify_files, jsonlines.read),
    "json": Reader(json_documents.identify, json_documents.read),
    "text": Reader(locations.identify_files, text.read),
    "images": Reader(locations.identify_files, images.read),
    "audio": Reader(locations.identify_files, audio.read),
    "idx": Reader(idx.identify, idx.read),
    "xlsx": Reader(locations.identify_files, xlsx.read),
    "sqlite": Reader(locations.identify_files, sqlite.read),
    "arff": Reader(locations.identify_files, arff.read),
    "stata": Reader(locations.identify_files, stata.read),
    "numpy": Reader(numpy_arrays.identify, _read_numpy),
    "huggingface": Reader(locations.identify_files, huggingface.read),
    "sklearn": Reader(sklearn_datasets.identify, sklearn_datasets.read),
    "delta": Reader(lakehouse.identify_delta, lakehouse.read_delta),
    "iceberg": Reader(lakehouse.identify_iceberg, lakehouse.read_iceberg),
    "sql": Reader(sql.identify, sql.read),
    "hive": Reader(hive.identify, hive.read),
}
