"""Which reader each format has."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from data_contracts.sources import Data, Origin
from tasks.sources import (
    audio,
    carried,
    columnar,
    databases,
    delimited,
    hive,
    idx,
    images,
    jsondocuments,
    jsonlines,
    places,
    tables,
    texts,
)
from tasks.sources.rows import Malformed, Rows


class Reader(NamedTuple):
    """`identify` gives what changes when the content does, as JSON; `read` gives the rows."""

    identify: Callable[[Data, Origin], list[object]]
    read: Callable[[Data, Origin, Malformed], Rows]


READERS: dict[str, Reader] = {
    "parquet": Reader(places.identify, columnar.read),
    "orc": Reader(places.identify, columnar.read),
    "arrow": Reader(places.identify, columnar.read),
    "csv": Reader(places.identify, delimited.read),
    "jsonl": Reader(places.identify, jsonlines.read),
    "json": Reader(jsondocuments.identify, jsondocuments.read),
    "text": Reader(places.identify, texts.read),
    "images": Reader(places.identify, images.read),
    "audio": Reader(places.identify, audio.read),
    "idx": Reader(idx.identify, idx.read),
    "sklearn": Reader(carried.identify, carried.read),
    "delta": Reader(tables.identify_delta, tables.read_delta),
    "iceberg": Reader(tables.identify_iceberg, tables.read_iceberg),
    "sql": Reader(databases.identify, databases.read),
    "hive": Reader(hive.identify, hive.read),
}
