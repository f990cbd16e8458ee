"""ARFF, the format of Weka: declared attributes, then dense or sparse rows, which liac-arff splits into values.

Source: https://waikato.github.io/weka-wiki/formats_and_processing/arff_stable/
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers import files
from bloomery.tasks.ingest.readers.base import (
    DECLARED_VALUES,
    MalformedWriter,
    RowStream,
    printable_text,
    unreadable_error,
)
from bloomery.tasks.ingest.readers.text_files.text_streams import transcode_to_utf8

_BATCH_ROWS = 8_192
_MAX_HEADER_LINES = 1_000_000
_DATE = re.compile(r"(?i)^(@attribute .*\S) date( *['\"].*)?$")  # liac-arff does not read this type
_RANGE = re.compile(r"(?i)(?<= )(real|integer|numeric) *\[[^\[\]]*\]$")  # of KEEL's files
_UNQUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,{}'"]+""")  # or quoted, to step over it
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")

AttributeType: TypeAlias = "str | list[str]"  # a name in upper case, or the values of a nominal attribute


class _Header(NamedTuple):
    """The types of the attributes by name, and the number of the line with `@data`."""

    attributes: dict[str, AttributeType]
    line: int


class _FaultyValue(Exception):
    """A value that its attribute cannot have. liac-arff ignores a ValueError that a conversion raises."""


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns the rows in the types of the attributes: numbers, or whole numbers where all are; else text.

    Every file is read twice: once for the numbers that are whole, once for the values. Malformed are rows with too many
    or too few values, or with a value that its attribute does not declare.

    Raises:
        DataMissing: a file has no header, or an attribute has a type that is not read.
    """
    return files.read_files(data, origin, malformed, _read_schema, _read_batches)


def _read_schema(location: FileLocation, data: DataSource) -> pa.Schema:
    with location.open_stream() as raw:
        stream, header = _open(raw, location, data)
        parse = _make_parser(header)
        names = [*header.attributes]
        fractions = {index for index, name in enumerate(names) if header.attributes[name] in _NUMERIC}
        candidates = set(fractions)
        for line in stream:
            row = _parse_line(line, parse)
            if isinstance(row, list):
                candidates -= {index for index in candidates if not _is_whole(row[index])}
            if not candidates:
                break
    return pa.schema(
        [
            _field(name, declared, is_whole=index in candidates)
            for index, (name, declared) in enumerate(header.attributes.items())
        ]
    )


def _field(name: str, declared: AttributeType, *, is_whole: bool) -> pa.Field:
    if isinstance(declared, list):
        return pa.field(name, pa.string(), metadata={DECLARED_VALUES: json.dumps(declared)})
    if declared in _NUMERIC:
        return pa.field(name, pa.int64() if is_whole else pa.float64())
    return pa.field(name, pa.string())


def _read_batches(
    location: FileLocation, data: DataSource, schema: pa.Schema, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    with location.open_stream() as raw:
        stream, header = _open(raw, location, data)
        parse = _make_parser(header)
        order = [[*header.attributes].index(name) for name in schema.names]
        numbered_lines = enumerate(stream, header.line + 1)
        while lines := list(islice(numbered_lines, _BATCH_ROWS)):
            rows = []
            for number, line in lines:
                row = _parse_line(line, parse)
                if isinstance(row, str):
                    malformed.add(location.relative, number, printable_text(line), row)
                elif row is not None:
                    rows.append(row)
            columns = [[row[index] for row in rows] for index in order]
            arrays = [
                pa.array(_to_numbers(column, field.type), field.type)
                for column, field in zip(columns, schema, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _to_numbers(column: list[Any], arrow_type: pa.DataType) -> list[Any]:
    if pa.types.is_string(arrow_type):
        return column
    convert = int if pa.types.is_integer(arrow_type) else float
    return [None if text is None else convert(text) for text in column]


_NUMERIC = ("NUMERIC", "REAL", "INTEGER")


def _open(raw: io.BufferedReader, location: FileLocation, data: DataSource) -> tuple[io.BufferedReader, _Header]:
    """Returns the text in UTF-8, read up to the line with `@data`, and the header."""
    import arff

    stream = transcode_to_utf8(raw, data.encoding or "utf-8")
    lines: list[str] = []
    required = "a header with @relation, @attribute and @data, with attributes of type numeric, nominal, string or date"
    try:
        for number, line in enumerate(islice(stream, _MAX_HEADER_LINES), 1):
            text = re.sub(r"^(@\w+)\s+", r"\1 ", line.decode().strip())
            if re.match(r"(?i)@data\b", text):
                header = arff.loads("\n".join([*lines, "@data"]))
                attributes = {
                    name: declared.upper() if isinstance(declared, str) else [str(value) for value in declared]
                    for name, declared in header["attributes"]
                }
                return stream, _Header(attributes, number)
            date = _DATE.match(text.replace("\t", " ")) if text[:1] == "@" else None
            lines.append(f"{date[1]} STRING" if date else _quote_declared_values(_RANGE.sub(r"\1", text)))
    except UnicodeDecodeError as failure:
        problem = f"its header is not {data.encoding or 'utf-8'}: {failure}"
        raise unreadable_error(location.path, problem, required, "ARFF", options=("encoding",)) from failure
    except (arff.ArffException, ValueError) as failure:
        raise unreadable_error(location.path, f"its header is invalid: {failure}", required, "ARFF") from failure
    raise unreadable_error(location.path, "it has no line @data", required, "ARFF")


def _quote_declared_values(line: str) -> str:
    """Returns the line with quotes around declared values with blanks, which Weka writes and other tools do not."""
    name, brace, values = line.partition("{")
    return f"{name}{brace}{_quote_blanks(values)}" if line[:1] == "@" and values.endswith("}") else line


def _quote_blanks(values: str) -> str:
    def quote(match: re.Match[str]) -> str:
        value = match[0].strip()
        return f"'{value}'" if value[:1] not in ("", "'", '"') and re.search(r"\s", value) else match[0]

    return _UNQUOTED.sub(quote, values)


def _make_parser(header: _Header) -> Callable[[str], list[str | None]]:
    """Returns a function that splits a row into the texts of its values, and checks those of numbers."""
    import arff

    def conversor(declared: AttributeType) -> Callable[[str], str | None]:
        if isinstance(declared, list):
            return arff.NominalConversor(declared)
        return _check_number if declared in _NUMERIC else _check_text

    conversors = [conversor(declared) for declared in header.attributes.values()]
    decoder = arff.DenseGeneratorData()

    def parse(row: str) -> list[str | None]:
        try:
            return list(next(decoder.decode_rows([row], conversors)))
        except arff.BadLayout:
            if row.startswith("{"):
                raise
            return list(next(decoder.decode_rows([_quote_blanks(row)], conversors)))

    return parse


def _check_number(value: str | int) -> str:
    try:
        float(value)
    except ValueError as failure:
        raise _FaultyValue(f"{value!r} is no number") from failure
    return str(value)


def _check_text(value: str | int) -> str | None:
    """Returns the text; None where a sparse row has none, for which liac-arff has the number 0."""
    return value if isinstance(value, str) else None


def _is_whole(text: str | None) -> bool:
    return text is None or _WHOLE.fullmatch(text) is not None


def _parse_line(line: bytes, parse: Callable[[str], list[str | None]]) -> list[str | None] | str | None:
    """Returns the texts of a row, the reason why it has none, or None for a comment or a blank line."""
    import arff

    try:
        text = line.decode().strip()
        return parse(text) if text and not text.startswith("%") else None
    except UnicodeDecodeError:
        return "bytes that are not of the file's encoding"
    except arff.BadDataFormat:
        return "another number of values than attributes"
    except (arff.ArffException, csv.Error, _FaultyValue) as failure:
        return str(failure).partition(", at line")[0]
