"""What formats of rows in files share: one schema over all files, and the columns that their paths give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error

SchemaReader = Callable[[FileLocation, Data], pa.Schema]
_SPELT = {"parquet": "Parquet", "orc": "ORC", "csv": "CSV", "jsonl": "JSON lines", "arrow": "Arrow"}

BatchReader = Callable[[FileLocation, Data, pa.Schema, MalformedWriter], Iterator[pa.RecordBatch]]


def read_files(
    data: Data,
    origin: Origin,
    malformed: MalformedWriter,
    schema_of: SchemaReader,
    batches_of: BatchReader,
    *,
    may_lack: bool = False,
) -> RowStream:
    """The rows of all files of `origin`, file after file.

    `may_lack` lets a file lack columns that another has.

    Raises:
        DataMissing: no file, a file that cannot be read, or files that do not fit each other.
    """
    found = [
        place for place in locations.find_files(data, origin.source) if locations.is_selected(origin, place.relative)
    ]
    if not found:
        raise unreadable_error(origin.source, f"no file has {origin.files!r} in its path", "a file that `files` fits")
    inner = _one_schema(found, [_schema_of(place, data, schema_of) for place in found], may_lack)
    given = [_given(data, place) for place in found]
    outer = _with_given(inner, given, found, is_text=data.is_text)

    def batches() -> Iterator[pa.RecordBatch]:
        for place, values in zip(found, given, strict=True):
            try:
                for batch in batches_of(place, data, inner, malformed):
                    yield _completed(batch, outer, values)
            except (pa.ArrowException, OSError) as failure:
                raise _wrapped(place, data, failure) from failure

    return RowStream(outer, batches())


def _schema_of(place: FileLocation, data: Data, schema_of: SchemaReader) -> pa.Schema:
    try:
        return schema_of(place, data)
    except (pa.ArrowException, OSError) as failure:
        raise _wrapped(place, data, failure) from failure


def _wrapped(place: FileLocation, data: Data, failure: Exception) -> Exception:
    """The error to show; an error of the operating system has a number and may pass, and stays what it is."""
    if isinstance(failure, OSError) and failure.errno is not None:
        raise failure
    told = str(failure).replace("\n", " ")
    return unreadable_error(place.path, told, f"whole files of format {data.kind}", _SPELT.get(data.kind, data.kind))


def _one_schema(found: Sequence[FileLocation], schemas: Sequence[pa.Schema], may_lack: bool) -> pa.Schema:
    """The columns of the first file, with types wide enough for all; columns that only later files have come behind."""
    first = schemas[0]
    for place, schema in zip(found, schemas, strict=True):
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise unreadable_error(
                place.path, f"column named twice: {', '.join(twice)}", "columns with names of their own"
            )
        if not may_lack and set(schema.names) != set(first.names):
            raise DataMissing(
                f"{place.relative} has the columns {', '.join(schema.names)}",
                required=f"those of the first file, {found[0].relative}: {', '.join(first.names)}",
                where=place.path,
                remedy="give files of one kind, or read them in two recipes",
            )
    try:
        return pa.unify_schemas([pa.schema(list(schema)) for schema in schemas], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as failure:
        told = f"with the files behind it as one table: {failure}"
        raise unreadable_error(found[0].path, told, "one type per column") from failure


def _given(data: Data, place: FileLocation) -> dict[str, str | None]:
    told = locations.match_path_pattern(data, place.relative)
    if told is None:
        raise DataMissing(
            f"the path {place.relative!r} does not fit path_pattern",
            required=f"a path in which {data.path_pattern!r} is found",
            where=place.path,
            remedy="mend the pattern, or name the files by a pattern such as `rows-*.csv`",
        )
    return {**locations.partition_values(place.relative), **told}


def _with_given(
    inner: pa.Schema, given: Sequence[dict[str, str | None]], found: Sequence[FileLocation], *, is_text: bool
) -> pa.Schema:
    schema = inner
    for name in given[0]:
        if name in inner.names:
            raise unreadable_error(
                found[0].path, f"column {name!r} is in the file and in its path", "one value per column"
            )
        if any(name not in values for values in given):
            lacking = next(place for place, values in zip(found, given, strict=True) if name not in values)
            raise unreadable_error(lacking.path, f"the path has no {name}=...", "the same folders for all files")
        kind = pa.string() if is_text or not _are_whole([values[name] for values in given]) else pa.int64()
        schema = schema.append(pa.field(name, kind))
    odd = next((place for place, values in zip(found, given, strict=True) if len(values) > len(given[0])), None)
    if odd is not None:
        raise unreadable_error(
            odd.path, "the path gives columns that other files do not have", "the same folders for all"
        )
    return schema


def _are_whole(texts: Sequence[str | None]) -> bool:
    """Whether folder names are whole numbers, each in its plain spelling (so `01` is text)."""
    told = [text for text in texts if text is not None]
    return bool(told) and all(text.lstrip("-").isascii() and _is_whole(text) for text in told)


def _is_whole(text: str) -> bool:
    return text.lstrip("-").isdigit() and str(int(text)) == text and abs(int(text)) < 2**63


def _completed(batch: pa.RecordBatch, schema: pa.Schema, given: dict[str, str | None]) -> pa.RecordBatch:
    arrays = list(batch.columns)
    for name, value in given.items():
        one = pa.array([value], pa.string()).cast(schema.field(name).type)
        arrays.append(pa.repeat(one[0], batch.num_rows))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
