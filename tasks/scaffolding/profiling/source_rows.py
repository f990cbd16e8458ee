"""Reads a source's rows into a scratch file: without columns that no contract can hold, and with texts normalized."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.odcs.base import LogicalType
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.source_options import OPTIONS
from bloomery.tasks.infrastructure.parquet import RowWriter, read_batches, row_group_size_of
from bloomery.tasks.ingest.column_changes import drop_columns, is_abnormal, normalize_texts, select_columns
from bloomery.tasks.ingest.readers.base import DECLARED_VALUES, SOURCE_TYPE, MalformedWriter, RowStream
from bloomery.tasks.ingest.readers.sequences.nested_arrays import flat_type, flatten_arrays, nesting_depth
from bloomery.tasks.ingest.stage import read_sources
from bloomery.tasks.scaffolding.profiling.column_names import matching_names
from bloomery.tasks.scaffolding.profiling.column_profiles import MARKERS
from bloomery.tasks.scaffolding.profiling.number_inference import (
    InferredNumbers,
    rewrite_inferred_numbers,
    without_notation,
)

_MAX_MALFORMED_SHARE = 0.2
# Options that may explain malformed rows, of which a format has some.
_READING_OPTIONS = ("delimiter", "quote", "escape", "skip_lines", "trailing_delimiter", "columns", "records", "sheet")
_MEDIA_OPTIONS = {
    "images": "convert these files, or set --path-pattern",
    "audio": "convert these files, or set --resample, --mono or --path-pattern",
    "huggingface": "convert its images or recordings, or set --resample or --mono",
}
ROWS_FILE, MALFORMED_FILE = "profiled.parquet", "malformed.parquet"
_MAX_NORMALIZED_LENGTH = 200  # characters; longer texts are no categories


class SourceRows(NamedTuple):
    """The rows in the scratch file. `left_out` has the reason by column, `source_types` the types before conversion.

    `inner_sizes` has the columns of arrays of arrays, with how many inner arrays of each depth have which length.
    `declared_values` are the texts that the source says a column may have.
    """

    schema: pa.Schema
    num_rows: int
    num_malformed: int
    first_malformed: str
    left_out: dict[str, str]
    source_types: dict[str, str]
    normalized: tuple[str, ...]
    numbers: InferredNumbers
    inner_sizes: dict[str, tuple[Counter[int], ...]]
    declared_values: dict[str, tuple[str, ...]]


def read_source_rows(data: DataSource, scratch: Path, label: str) -> SourceRows:
    """Writes the rows of `data` to the folder `scratch`. `label` is the label's name in the source or the contract.

    Raises:
        DataMissing, EngineMissing: as `ingest` does.
        DataUnfit: there are no rows, or the label has a type that no contract has.
    """
    path = scratch / ROWS_FILE
    with MalformedWriter(scratch / MALFORMED_FILE) as malformed:
        rows = drop_columns(read_sources(without_notation(data), malformed), data)
        source_types = {
            field.name: field.metadata[SOURCE_TYPE].decode()
            for field in rows.schema
            if SOURCE_TYPE in (field.metadata or {})
        }
        declared_values = {
            field.name: tuple(json.loads(field.metadata[DECLARED_VALUES]))
            for field in rows.schema
            if DECLARED_VALUES in (field.metadata or {})
        }
        left_out = {field.name: reason for field in rows.schema if (reason := _unsupported_type(flat_type(field.type)))}
        labels = matching_names(label, rows.schema.names)
        _require_supported_label(left_out, labels, data)
        rows = select_columns(rows, [name for name in rows.schema.names if name not in left_out])
        rows, inner_sizes = _flatten_columns(rows)
        abnormal: set[str] = set()
        with RowWriter(path, rows.schema, rows.row_group_size) as writer:
            for batch in rows.batches:
                abnormal |= set(_abnormal_columns(batch, abnormal))
                writer.write(batch)
    first_malformed = _describe_first_malformed(scratch / MALFORMED_FILE)
    if not writer.num_rows:
        raise DataUnfit(
            f"there are no rows, and {malformed.num_lines} malformed lines {first_malformed}".strip(),
            required="rows to learn from",
            where=data.description,
            remedy=f"choose other data, or {_describe_options(data)}",
        )
    _require_few_malformed(writer.num_rows, malformed.num_lines, first_malformed, data)
    numbers = rewrite_inferred_numbers(path, data)
    normalized = tuple(
        name for name in rows.schema.names if name in abnormal and (name in labels or _merges_texts(path, name))
    )
    if normalized:
        _normalize_columns(path, normalized)
    return SourceRows(
        schema=rows.schema,
        num_rows=writer.num_rows,
        num_malformed=malformed.num_lines,
        first_malformed=first_malformed,
        left_out=left_out,
        source_types=source_types,
        normalized=normalized,
        numbers=numbers,
        inner_sizes=inner_sizes,
        declared_values=declared_values,
    )


def _flatten_columns(rows: RowStream) -> tuple[RowStream, dict[str, tuple[Counter[int], ...]]]:
    """Returns the rows without arrays of arrays, and the lengths of the inner ones, complete when all rows are read."""
    depths = {field.name: nesting_depth(field.type) for field in rows.schema}
    sizes = {name: tuple(Counter[int]() for _ in range(1, depth)) for name, depth in depths.items() if depth > 1}
    if not sizes:
        return rows, sizes
    schema = pa.schema([field.with_type(flat_type(field.type)) for field in rows.schema])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches:
            arrays = []
            for name, column in zip(schema.names, batch.columns, strict=True):
                flat = flatten_arrays(column)
                for total, counts in zip(sizes.get(name, ()), flat.sizes, strict=True):
                    total.update(counts)
                arrays.append(flat.values)
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return rows._replace(schema=schema, batches=batches()), sizes


def _require_few_malformed(num_rows: int, num_malformed: int, first_malformed: str, data: DataSource) -> None:
    """Raises DataUnfit where so many lines are malformed that the file is rather written in another way."""
    num_all = num_rows + num_malformed
    if num_malformed > _MAX_MALFORMED_SHARE * num_all:
        raise DataUnfit(
            f"{num_malformed:,} of {num_all:,} rows are malformed; {first_malformed}",
            required=f"at most {_MAX_MALFORMED_SHARE:.0%} malformed rows",
            where=data.description,
            remedy=_describe_options(data)
            + ("" if data.kind in _MEDIA_OPTIONS else " if the file is written in another way; else correct it"),
        )


def _describe_options(data: DataSource) -> str:
    """Returns the options that say how such a source is written, as a clause."""
    flags = [f"--{option.replace('_', '-')}" for option in _READING_OPTIONS if option in OPTIONS[data.kind]]
    return _MEDIA_OPTIONS.get(data.kind, f"set {', '.join(flags)} or --format" if flags else "set --format")


def logical_type_of(arrow_type: pa.DataType) -> LogicalType | None:
    """Returns the contract's type for an Arrow type; None where a contract has none."""
    if pa.types.is_boolean(arrow_type):
        return "boolean"
    if pa.types.is_integer(arrow_type):
        return "integer"
    if pa.types.is_floating(arrow_type):
        return "number"
    if pa.types.is_string(arrow_type) or pa.types.is_null(arrow_type):
        return "string"
    if pa.types.is_date(arrow_type):
        return "date"
    return "timestamp" if pa.types.is_timestamp(arrow_type) else None


def is_array(arrow_type: pa.DataType) -> bool:
    """Whether values are lists, of any length or of one."""
    return bool(
        pa.types.is_list(arrow_type) or pa.types.is_large_list(arrow_type) or pa.types.is_fixed_size_list(arrow_type)
    )


def _unsupported_type(arrow_type: pa.DataType) -> str | None:
    """Returns why no contract can hold values of this type; None if one can."""
    if is_array(arrow_type):
        element_type = logical_type_of(arrow_type.value_type)
        if element_type in (None, "date", "timestamp"):
            return f"its arrays have elements of type {arrow_type.value_type}, not numbers, text or booleans"
        return None
    if logical_type_of(arrow_type) is not None:
        return None
    if pa.types.is_struct(arrow_type):
        fields = ", ".join(field.name for field in arrow_type)
        return f"its values are objects with the fields {fields}: write each field as a column of its own"
    return f"it is of type {arrow_type}, and a contract takes numbers, text, booleans, dates, times and arrays"


def _require_supported_label(left_out: dict[str, str], labels: Collection[str], data: DataSource) -> None:
    for name, reason in left_out.items():
        if name in labels:
            raise DataUnfit(
                f"column {name} cannot be the label: {reason}",
                required="classes as whole numbers, texts or booleans; or numbers",
                where=data.description,
                remedy="choose another column, or write it as one of these types at the source",
            )


def _abnormal_columns(batch: pa.RecordBatch, skipped: Collection[str]) -> Iterator[str]:
    """Yields further columns of text with white space or characters that cannot be seen."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if pa.types.is_string(field.type) and field.name not in skipped and pc.any(is_abnormal(column)).as_py():
            yield field.name


def _merges_texts(path: Path, name: str) -> bool:
    """Whether two texts of a column are one when normalized, or one becomes empty or marks a missing value.

    Other columns stay as they are, since a client of the endpoint sends such texts too.
    """
    distinct: set[str] = set()
    for batch in read_batches(path, [name]):
        distinct.update(text for text in pc.unique(batch.column(0)).to_pylist() if text is not None)
    if max(map(len, distinct), default=0) > _MAX_NORMALIZED_LENGTH:
        return False
    texts = pa.array(sorted(distinct), pa.string())
    normalized = set(normalize_texts(texts).to_pylist())
    return len(normalized) < len(distinct) or bool((normalized - distinct) & {"", *MARKERS})


def _normalize_columns(path: Path, names: Collection[str]) -> None:
    temporary = path.with_suffix(".normalized")
    schema = pq.read_schema(path)
    with RowWriter(temporary, schema, row_group_size_of(path)) as writer:
        for batch in read_batches(path):
            columns = [
                normalize_texts(column) if field.name in names else column
                for field, column in zip(schema, batch.columns, strict=True)
            ]
            writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
    temporary.replace(path)


def _describe_first_malformed(path: Path) -> str:
    """Describes the first malformed line; empty if there is none."""
    for batch in read_batches(path):
        for row in batch.slice(0, 1).to_pylist():
            if row["line"] is None:
                return f"first malformed file: {row['file']}: {row['reason']}"
            return f"first malformed line: {row['file']}, line {row['line']}: {row['reason']}"
    return ""
