"""Digests: one sha256 for everything that is ever compared.

A digest names content, never a file's name, age or layout on disk.
"""

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
    """The sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_of_table(table: pa.Table) -> str:
    """The sha256 of a table's schema and values.

    Equal for equal values in equal order, however the table is cut into chunks: rows are hashed in slices of a fixed
    length, and a freshly taken array has no hidden offset, padding or value under a null.
    """
    sink = hashlib.sha256(str(table.schema.remove_metadata()).encode())
    for start in range(0, table.num_rows, _SLICE_ROWS):
        rows = table.slice(start, _SLICE_ROWS).replace_schema_metadata(None)
        fresh = rows.take(pa.array(range(rows.num_rows), pa.int64())).combine_chunks()
        for batch in fresh.to_batches():
            sink.update(batch.serialize())
    return sink.hexdigest()
