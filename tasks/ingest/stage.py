"""ingest: rows from their source into one Parquet file, unchecked; lines that are no rows into another."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import Data, Source
from bloomery.data_contracts.records.records import RawRows
from bloomery.tasks.infrastructure.parquet import RowWriter
from bloomery.tasks.infrastructure.personal_data import key_fingerprint
from bloomery.tasks.ingest.path_variables import expand_variables
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.registry import READERS
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output

_PART = "part"


@stage()
def ingest(out: Output, source: Source) -> RawRows:
    """Afterwards `rows.parquet` holds the rows as the source has them, in its order, and `malformed.parquet` the rest.

    Memory is bounded by a row group, whatever the number of rows; the bytes do not depend on how the source was cut.

    Raises:
        DataMissing: the source is gone, or is not what the recipe says of it.
        EngineMissing: a package or a client that the source needs is not there.
    """
    data = source.data
    rows, malformed = out.path("rows.parquet"), out.path("malformed.parquet")
    with MalformedWriter(malformed, is_encrypted=bool(source.personal)) as aside:
        found = _replaced(_renamed(_numbered(read_sources(data, aside), data), data), data)
        with RowWriter(rows, found.schema, found.group_rows, source.personal) as writer:
            for batch in found.batches:
                writer.write(batch)
    return RawRows(
        uri=out.uri("rows.parquet"),
        source=source.source,
        num_rows=writer.num_rows,
        malformed_uri=out.uri("malformed.parquet"),
        num_malformed=aside.num,
        is_text=data.is_text,
        # The bytes depend on the rows alone, so their digest is that of the rows.
        digest=digest_of_document([writer.digest(), aside.digest(), data.is_text, *_key(source)]),
    )


def _key(source: Source) -> list[str]:
    return [key_fingerprint(source.personal)] if source.personal else []


def locate_source(data: Data, personal: Collection[str] = ()) -> Source:
    """The source that `data` names, with a digest that changes when its content does, or the way to read it.

    The columns `personal` will be encrypted in all that is kept of it, which needs a key.

    Raises:
        SecretMissing: there is no key.
        DataMissing: there is no such file, table or set, or a variable in a path is not set.
        EngineMissing: a package or a client that the source needs is not there.
    """
    reader, named = READERS[data.kind], data.described
    data = expand_variables(data)
    content = [
        [origin.part, origin.files, origin.values or {}, reader.identify(data, origin)] for origin in data.origins
    ]
    way = data.model_dump(mode="json", exclude={"source", "sources", "labels", "obtain"}, exclude_none=True)
    found: list[Any] = [data.kind, {**way, "format": None}, content]
    if personal:
        found += [sorted(personal), key_fingerprint(personal)]
    return Source(source=named, data=data, personal=tuple(sorted(personal)), digest=digest_of_document(found))


def read_sources(data: Data, malformed: MalformedWriter) -> RowStream:
    """The rows of all origins, one behind the other; of several, with their `values` and the column `part`."""
    reader = READERS[data.kind]
    if data.sources is None:
        return reader.read(data, data.origins[0], malformed)
    readings = [reader.read(data, origin, malformed) for origin in data.origins]
    schema = _one_schema(data, [reading.schema for reading in readings])
    names = list(data.origins[0].values or ())
    given = [{**{name: (origin.values or {})[name] for name in names}, _PART: origin.part} for origin in data.origins]

    def batches() -> Iterator[pa.RecordBatch]:
        for reading, told in zip(readings, given, strict=True):
            for batch in reading.batches:
                arrays = [
                    batch[field.name].cast(field.type)
                    if field.name in reading.schema.names
                    else pa.nulls(batch.num_rows, field.type)
                    for field in list(schema)[: -len(told)]
                ]
                texts = [pa.repeat(pa.scalar(text, pa.string()), batch.num_rows) for text in told.values()]
                yield pa.RecordBatch.from_arrays([*arrays, *texts], schema=schema)

    return RowStream(schema, batches(), min(reading.group_rows for reading in readings))


def _one_schema(data: Data, schemas: list[pa.Schema]) -> pa.Schema:
    for schema, origin in zip(schemas, data.origins, strict=True):
        if data.kind not in ("json", "jsonl") and set(schema.names) != set(schemas[0].names):
            raise DataMissing(
                f"{origin.source} has the columns {', '.join(schema.names)}",
                required=f"those of the first source: {', '.join(schemas[0].names)}",
                where="the recipe's data.sources",
                remedy="give sources of one kind",
            )
    try:
        whole = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as failure:
        raise DataMissing(
            f"the sources do not fit each other: {failure}",
            required="one type per column",
            where=data.described,
            remedy="write the sources in equal types",
        ) from failure
    for name in (*(data.origins[0].values or ()), _PART):
        _require_free(name, whole, "sources")
        whole = whole.append(pa.field(name, pa.string()))
    return whole


def _numbered(rows: RowStream, data: Data) -> RowStream:
    """With the column `row_id` in front, if the recipe asks for one; as text where all columns are text."""
    carries = data.kind == "idx" and data.row_id is None
    name = "id" if carries else data.row_id
    if name is None:
        return rows
    _require_free(name, rows.schema, "row_id")
    kind = pa.string() if data.is_text else pa.int64()
    schema = rows.schema.insert(0, pa.field(name, kind))

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in rows.batches:
            numbers = pa.array(np.arange(start, start + batch.num_rows, dtype=np.int64)).cast(kind)
            start += batch.num_rows
            yield pa.RecordBatch.from_arrays([numbers, *batch.columns], schema=schema)

    return rows._replace(schema=schema, batches=batches())


def _renamed(rows: RowStream, data: Data) -> RowStream:
    new = data.rename or {}
    unknown = sorted(set(new) - set(rows.schema.names))
    if unknown:
        raise _misfit(f"there is no column {', '.join(unknown)} to rename", rows.schema, "rename")
    names = [new.get(name, name) for name in rows.schema.names]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise _misfit(f"two columns would have the name {', '.join(twice)}", rows.schema, "rename")
    schema = pa.schema([(name, field.type) for name, field in zip(names, rows.schema, strict=True)])
    renamed = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in rows.batches)
    return rows._replace(schema=schema, batches=renamed)


def _replaced(rows: RowStream, data: Data) -> RowStream:
    """With other texts in place of those that the recipe names."""
    new = data.replace or {}
    for name in new:
        if name not in rows.schema.names or not pa.types.is_string(rows.schema.field(name).type):
            raise _misfit(f"there is no column of text {name}", rows.schema, "replace")
    if not new:
        return rows

    def column(cells: pa.Array, name: str) -> pa.Array:
        told = new.get(name)
        if told is None:
            return cells
        found = pc.index_in(cells, pa.array(list(told), pa.string()))
        return pc.coalesce(pa.array(list(told.values()), pa.string()).take(found), cells)

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches:
            columns = [column(cells, name) for name, cells in zip(rows.schema.names, batch.columns, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, schema=rows.schema)

    return rows._replace(batches=batches())


def _require_free(name: str, schema: pa.Schema, option: str) -> None:
    if name in schema.names:
        raise _misfit(f"the source has a column {name} already", schema, option)


def _misfit(found: str, schema: pa.Schema, option: str) -> RecipeInvalid:
    return RecipeInvalid(
        found,
        required=f"names that fit the source's columns: {', '.join(schema.names)}",
        where=f"the recipe's data.{option}",
        remedy="mend the recipe",
    )
