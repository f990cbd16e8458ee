"""Text files: a row per line, or a row per file."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import FileLocation, folder_label
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, printable_text
from bloomery.tasks.ingest.readers.text_files.text_streams import transcode_to_utf8

_BATCH_LINES = 8_192
_FILES_PER_ROW_GROUP = 4_096


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the column `text`: all lines, without line ends; or complete files, with `path` and `label`.

    The label is the name of the folder, unless `path_pattern` names the columns of the path.
    """
    if data.unit != "file":
        return files.read_files(data, origin, malformed, _line_schema, _read_lines)
    rows = files.read_files(data, origin, malformed, _file_schema, _read_file)
    return rows._replace(row_group_size=_FILES_PER_ROW_GROUP)


def _line_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    return pa.schema([("text", pa.string())])


def _read_lines(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    with location.open_stream() as raw:
        stream = transcode_to_utf8(raw, data.encoding or "utf-8")
        numbered_lines = enumerate(stream, 1)
        while lines := list(islice(numbered_lines, _BATCH_LINES)):
            texts = []
            for number, line in lines:
                try:
                    texts.append(line.decode("utf-8").rstrip("\r\n"))
                except UnicodeDecodeError:
                    malformed.add(location.relative, number, printable_text(line), _not_encoded(data))
            yield pa.RecordBatch.from_arrays([pa.array(texts, pa.string())], schema=schema)


def _file_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    label = [] if data.path_pattern else [("label", pa.string())]
    return pa.schema([("path", pa.string()), *label, ("text", pa.string())])


def _read_file(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    with location.open_stream() as raw:
        content = transcode_to_utf8(raw, data.encoding or "utf-8").read()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        malformed.add(location.relative, None, printable_text(content), _not_encoded(data))
        return
    row = {"path": location.relative, "label": folder_label(location.relative), "text": text}
    yield pa.RecordBatch.from_pylist([{name: row[name] for name in schema.names}], schema=schema)


def _not_encoded(data: DataSource) -> str:
    return f"bytes that are not {data.encoding or 'utf-8'}"
