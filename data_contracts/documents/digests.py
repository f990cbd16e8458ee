"""Digests: the sha256 of content, whatever a file's name, age or layout on disk."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa

_SLICE_ROWS = 65_536


def digest_of_document(document: Any) -> str:
    """The sha256 of a JSON-able value, independent of key order and white space."""
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """The sha256 of a file's bytes, which are read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_table(table: pa.Table) -> str:
    """The sha256 of a table's column names, types and values.

    It does not depend on the table's chunks, and is the same after the table was written to Parquet and read again:
    rows are hashed in slices of a fixed length, as copies, which have no offset, padding or value under a null.
    """
    columns = {field.name: _decode(table[position], field.type) for position, field in enumerate(table.schema)}
    decoded = pa.table(columns)
    digest = hashlib.sha256(repr([(field.name, _type_name(field.type)) for field in decoded.schema]).encode())
    for start in range(0, decoded.num_rows, _SLICE_ROWS):
        rows = decoded.slice(start, _SLICE_ROWS)
        copy = rows.take(pa.array(range(rows.num_rows), pa.int64())).combine_chunks()
        for batch in copy.to_batches():
            digest.update(batch.serialize())
    return digest.hexdigest()


def _decode(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """The column without dictionary encoding, since a batch is serialized without its dictionaries."""
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column


def _type_name(kind: pa.DataType) -> str:
    """The name of a type without the name of a list's element field, which Parquet changes."""
    return f"list<{_type_name(kind.value_type)}>" if pa.types.is_list(kind) else str(kind)
