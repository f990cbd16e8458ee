"""ingest: reads the rows of a source into one Parquet file, unchecked, and malformed lines into another."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, LocatedSource
from bloomery.data_contracts.records.records import RawRows
from bloomery.tasks.infrastructure.parquet import RowWriter
from bloomery.tasks.infrastructure.personal_data import key_fingerprint
from bloomery.tasks.ingest.column_changes import change_columns, require_unused
from bloomery.tasks.ingest.file_columns.column_files import identify_columns
from bloomery.tasks.ingest.file_columns.decoding import decode_files
from bloomery.tasks.ingest.path_variables import expand_variables
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.registry import READERS
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output

_SPLIT_COLUMN = "part"  # with a number behind it where the sources have a column of that name


@stage()
def ingest(out: Output, source: LocatedSource) -> RawRows:
    """Writes the source's rows in their order to `rows.parquet`, and malformed lines to `malformed.parquet`.

    Memory is bounded by a row group, whatever the number of rows. The bytes do not depend on how the source was cut
    into files and batches.

    Raises:
        DataMissing: the source is gone, or is not what the recipe says.
        EngineMissing: a package or a client that the source needs is not installed.
    """
    data = source.data
    path, malformed_path = out.path("rows.parquet"), out.path("malformed.parquet")
    with MalformedWriter(malformed_path, is_encrypted=bool(source.personal)) as malformed:
        rows = decode_files(change_columns(read_sources(data, malformed), data), data, malformed)
        with RowWriter(path, rows.schema, rows.row_group_size, source.personal) as writer:
            for batch in rows.batches:
                writer.write(batch)
    return RawRows(
        uri=out.uri("rows.parquet"),
        source=source.source,
        num_rows=writer.num_rows,
        malformed_uri=out.uri("malformed.parquet"),
        num_malformed=malformed.num_lines,
        is_text=data.is_text,
        # The bytes depend on the rows alone, so their digest is that of the rows.
        digest=digest_of_document([writer.digest(), malformed.digest(), data.is_text, *_fingerprints(source)]),
    )


def _fingerprints(source: LocatedSource) -> list[str]:
    return [key_fingerprint(source.personal)] if source.personal else []


def locate_source(data: DataSource, personal: Collection[str] = ()) -> LocatedSource:
    """Returns the source of `data`, with a digest that changes when its content or the way to read it does.

    Args:
        personal: the columns that are encrypted in everything that is kept of the source, which needs a key.

    Raises:
        SecretMissing: there is no key.
        DataMissing: there is no such file, table or set, or a variable in a path is not set.
        EngineMissing: a package or a client that the source needs is not installed.
    """
    reader, description = READERS[data.kind], data.description
    data = expand_variables(data)
    content: list[object] = [
        [origin.part, origin.files, origin.values or {}, reader.identify(data, origin)] for origin in data.source_files
    ]
    content += [identify_media(data)] if data.media else []
    options = data.model_dump(mode="json", exclude={"source", "sources", "labels", "obtain"}, exclude_none=True)
    for column in options.get("media", {}).values():
        column.pop("folder", None)
    identity: list[object] = [data.kind, {**options, "format": None}, content]
    if personal:
        identity += [sorted(personal), key_fingerprint(personal)]
    return LocatedSource(
        source=description, data=data, personal=tuple(sorted(personal)), digest=digest_of_document(identity)
    )


def identify_media(data: DataSource, *, by_content: bool = True) -> list[object]:
    """Returns what changes when a file does that a column of `data.media` names. Reads these columns' names.

    Raises:
        DataMissing: none of the files of a column exists, or none that is tried can be decoded.
    """
    with tempfile.TemporaryDirectory() as scratch, MalformedWriter(Path(scratch) / "malformed.parquet") as malformed:
        return identify_columns(change_columns(read_sources(data, malformed), data), data, by_content=by_content)


def read_sources(data: DataSource, malformed: MalformedWriter) -> RowStream:
    """Returns the rows of all sources, one after the other; of several, with their `values` and then their `part`."""
    reader = READERS[data.kind]
    if data.sources is None:
        return reader.read(data, data.source_files[0], malformed)
    streams = [reader.read(data, origin, malformed) for origin in data.source_files]
    schema = _unify_schemas(data, [stream.schema for stream in streams])
    names = list(data.source_files[0].values or ())
    constants = [[*((origin.values or {})[name] for name in names), origin.part] for origin in data.source_files]

    def batches() -> Iterator[pa.RecordBatch]:
        for stream, values in zip(streams, constants, strict=True):
            for batch in stream.batches:
                arrays = [
                    batch[field.name].cast(field.type)
                    if field.name in stream.schema.names
                    else pa.nulls(batch.num_rows, field.type)
                    for field in list(schema)[: -len(values)]
                ]
                texts = [pa.repeat(pa.scalar(text, pa.string()), batch.num_rows) for text in values]
                yield pa.RecordBatch.from_arrays([*arrays, *texts], schema=schema)

    return RowStream(schema, batches(), min(stream.row_group_size for stream in streams))


def _unify_schemas(data: DataSource, schemas: list[pa.Schema]) -> pa.Schema:
    """Returns one schema for all sources, with their `values` and the column of their `part` at its end."""
    for schema, origin in zip(schemas, data.source_files, strict=True):
        if data.kind not in ("json", "jsonl") and set(schema.names) != set(schemas[0].names):
            raise DataMissing(
                f"{origin.source} has the columns {', '.join(schema.names)}",
                required=f"those of the first source: {', '.join(schemas[0].names)}",
                where="the recipe's data.sources",
                remedy="name sources with the same columns",
            )
    try:
        unified = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as failure:
        raise DataMissing(
            f"the sources do not fit each other: {failure}",
            required="one type per column",
            where=data.description,
            remedy="write the sources with equal types",
        ) from failure
    for name in data.source_files[0].values or ():
        require_unused(name, unified, "sources")
        unified = unified.append(pa.field(name, pa.string()))
    names = (f"{_SPLIT_COLUMN}_{number}" if number > 1 else _SPLIT_COLUMN for number in itertools.count(1))
    split_column = next(name for name in names if name not in unified.names)
    return unified.append(pa.field(split_column, pa.string()))
