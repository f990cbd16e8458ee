"""Text files: a row per line, or a row per file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest.locations import FileLocation, folder_label
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, printable_text
from bloomery.tasks.ingest.readers.delimited import transcode_to_utf8

_BATCH_LINES = 8_192
_FILES_PER_GROUP = 4_096


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """The column `text`: lines without their ends, blank ones too; or whole files, beside `path` and `label`.

    The label is the name of the folder, unless `path_pattern` says what the path tells.
    """
    if data.unit != "file":
        return files.read_files(data, origin, malformed, lambda place, data: pa.schema([("text", pa.string())]), _lines)
    rows = files.read_files(data, origin, malformed, _schema_of_files, _file)
    return rows._replace(group_rows=_FILES_PER_GROUP)


def _lines(place: FileLocation, data: Data, schema: pa.Schema, malformed: MalformedWriter) -> Iterator[pa.RecordBatch]:
    with place.stream() as raw:
        stream = transcode_to_utf8(raw, data.encoding or "utf-8")
        numbered = enumerate(stream, 1)
        while lines := list(islice(numbered, _BATCH_LINES)):
            texts = []
            for number, line in lines:
                try:
                    texts.append(line.decode("utf-8").rstrip("\r\n"))
                except UnicodeDecodeError:
                    malformed.add(place.relative, number, printable_text(line), _not_in(data))
            yield pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], schema=schema)


def _schema_of_files(place: FileLocation, data: Data) -> pa.Schema:
    label = [] if data.path_pattern else [("label", pa.string())]
    return pa.schema([("path", pa.string()), *label, ("text", pa.string())])


def _file(place: FileLocation, data: Data, schema: pa.Schema, malformed: MalformedWriter) -> Iterator[pa.RecordBatch]:
    with place.stream() as raw:
        read = transcode_to_utf8(raw, data.encoding or "utf-8").read()
    try:
        text = read.decode("utf-8")
    except UnicodeDecodeError:
        malformed.add(place.relative, None, printable_text(read), _not_in(data))
        return
    row = {"path": place.relative, "label": folder_label(place.relative), "text": text}
    yield pa.RecordBatch.from_pylist([{name: row[name] for name in schema.names}], schema=schema)


def _not_in(data: Data) -> str:
    return f"bytes that are not {data.encoding or 'utf-8'}"
