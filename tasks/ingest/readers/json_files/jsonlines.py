"""JSON lines: an object per line, in UTF-8 (RFC 8259). Nested objects become struct columns, arrays lists."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, printable_text
from bloomery.tasks.ingest.readers.json_files.json_types import (
    ColumnTypes,
    JsonValue,
    build_batch,
    json_type_name,
    parse_integer,
)
from bloomery.tasks.ingest.readers.text_files.text_streams import transcode_to_utf8

_BATCH_LINES = 8_192


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of files with a JSON object per line. A key that a line lacks is null.

    Every file is read twice: once for the types of all lines, once for the values. Malformed are lines that are no
    object, and lines with a value of another type than nearly all others of its column.
    """
    types = ColumnTypes(data)
    read_schema, read_batches = partial(add_types, types=types), partial(_read_batches, types=types)
    return files.read_files(data, origin, malformed, read_schema, read_batches, is_cumulative=True)


def add_types(location: FileLocation, data: DataSource, types: ColumnTypes) -> pa.Schema:
    """Adds the rows of a file to `types`, and returns their columns."""
    with _open(location, data) as stream:
        for line in stream:
            try:
                row = _parse(line)
            except ValueError:
                continue  # the second reading sets the line aside
            types.add(row or {})
    return types.schema()


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter, types: ColumnTypes
) -> Iterator[pa.RecordBatch]:
    with _open(location, data) as stream:
        numbered_lines = enumerate(stream, 1)
        while lines := list(islice(numbered_lines, _BATCH_LINES)):
            rows = []
            for number, line in lines:
                try:
                    row = _parse(line)
                    if row is not None:
                        rows.append(types.convert(row, schema))
                except ValueError as failure:
                    malformed.add(location.relative, number, printable_text(line), str(failure))
            yield build_batch(rows, schema)


@contextmanager
def _open(location: FileLocation, data: DataSource) -> Iterator[io.BufferedReader]:
    with location.open_stream() as raw:
        yield transcode_to_utf8(raw, data.encoding or "utf-8")


def _parse(line: bytes) -> dict[str, JsonValue] | None:
    """Returns the object on a line, or None for a blank one.

    Raises:
        ValueError: the line is no JSON object, has a key twice, or has a value that no column can hold.
    """
    if not line.strip():
        return None
    try:
        # Checking every number costs more than checking whether the line has a long one.
        decoder = _INTEGER_CHECKING_DECODER if _LONG_NUMBER.search(line) else _DECODER
        row = decoder.decode(line.removeprefix(codecs.BOM_UTF8).decode())
        if b"\\u" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except UnicodeEncodeError as failure:
        raise ValueError("half of a surrogate pair, which is no text") from failure
    except UnicodeDecodeError as failure:
        raise ValueError("bytes that are not utf-8") from failure
    except json.JSONDecodeError as failure:
        raise ValueError(f"not JSON: {failure.msg} at character {failure.pos + 1}") from failure
    except RecursionError as failure:
        raise ValueError("JSON that is nested too deeply") from failure
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object, but {json_type_name(row)}")
    return row


def _parse_object(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_DECODER = json.JSONDecoder(object_pairs_hook=_parse_object)
_INTEGER_CHECKING_DECODER = json.JSONDecoder(object_pairs_hook=_parse_object, parse_int=parse_integer)
