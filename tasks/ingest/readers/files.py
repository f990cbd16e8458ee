"""What all formats of rows in files share: one schema over all files, and the columns in their paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.option_names import option_names
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, unreadable_error

SchemaReader = Callable[[FileLocation, DataSource], pa.Schema]
BatchReader = Callable[[FileLocation, DataSource, pa.Schema, MalformedWriter], Iterator[pa.RecordBatch]]
_FORMAT_NAMES = {"parquet": "Parquet", "orc": "ORC", "csv": "CSV", "jsonl": "JSON lines", "arrow": "Arrow"}


def read_files(
    data: DataSource,
    origin: SourceFile,
    malformed: MalformedWriter,
    read_schema: SchemaReader,
    read_batches: BatchReader,
    *,
    is_cumulative: bool = False,
) -> RowStream:
    """Returns the rows of all files of `origin`, file after file.

    With `is_cumulative` the schema of a file is that of all files up to it.

    Raises:
        DataMissing: there is no file, a file cannot be read, or the files do not fit each other.
    """
    files = locations.find_row_files(data, origin)
    schemas = [_read_schema(file, data, read_schema) for file in files]
    file_schema = schemas[-1] if is_cumulative else _unify_schemas(files, schemas)
    path_values = [_read_path_values(data, file) for file in files]
    schema = _add_path_columns(file_schema, path_values, files, is_text=data.is_text)

    def batches() -> Iterator[pa.RecordBatch]:
        for file, values in zip(files, path_values, strict=True):
            try:
                for batch in read_batches(file, data, file_schema, malformed):
                    yield _append_values(batch, schema, values)
            except (pa.ArrowException, OSError) as failure:
                raise _to_readable_error(file, data, failure) from failure

    return RowStream(schema, batches())


def _read_schema(file: FileLocation, data: DataSource, read_schema: SchemaReader) -> pa.Schema:
    try:
        return read_schema(file, data)
    except (pa.ArrowException, OSError) as failure:
        raise _to_readable_error(file, data, failure) from failure


def _to_readable_error(file: FileLocation, data: DataSource, failure: Exception) -> Exception:
    """Returns the error to show. Re-raises an error of the operating system, which has a number and may pass."""
    if isinstance(failure, OSError) and failure.errno is not None:
        raise failure
    problem = str(failure).replace("\n", " ")
    format_name = _FORMAT_NAMES.get(data.kind, data.kind)
    return unreadable_error(file.path, problem, f"complete files of format {data.kind}", format_name)


def _unify_schemas(files: Sequence[FileLocation], schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Returns the columns of the first file in types wide enough for all files."""
    first = schemas[0]
    for file, schema in zip(files, schemas, strict=True):
        duplicates = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if duplicates:
            raise unreadable_error(
                file.path, f"two columns have the name {', '.join(duplicates)}", "columns with unique names"
            )
        if set(schema.names) != set(first.names):
            raise DataMissing(
                f"{file.relative} has the columns {', '.join(schema.names)}",
                required=f"those of the first file, {files[0].relative}: {', '.join(first.names)}",
                where=file.path,
                remedy=f"choose files with the same columns by {option_names('files')}, or read them in two recipes",
            )
    try:
        return pa.unify_schemas([pa.schema(list(schema)) for schema in schemas], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as failure:
        problem = f"together with the files after it: {failure}"
        raise unreadable_error(files[0].path, problem, "one type per column") from failure


def _read_path_values(data: DataSource, file: FileLocation) -> dict[str, str | None]:
    values = locations.match_path_pattern(data, file.relative)
    if values is None:
        raise DataMissing(
            f"the path {file.relative!r} does not match path_pattern",
            required=f"a path in which {data.path_pattern!r} is found",
            where=file.path,
            remedy="correct the pattern, or name the files by a pattern such as `rows-*.csv`",
        )
    return {**locations.partition_values(file.relative), **values}


def _add_path_columns(
    file_schema: pa.Schema,
    path_values: Sequence[dict[str, str | None]],
    files: Sequence[FileLocation],
    *,
    is_text: bool,
) -> pa.Schema:
    """Returns the schema with the columns of the paths, which must be the same for all files."""
    schema = file_schema
    for name in path_values[0]:
        if name in file_schema.names:
            raise unreadable_error(
                files[0].path, f"column {name!r} is in the file and in its path", "one value per column"
            )
        if any(name not in values for values in path_values):
            file_without_column = next(
                file for file, values in zip(files, path_values, strict=True) if name not in values
            )
            raise unreadable_error(
                file_without_column.path, f"the path has no {name}=...", "the same folders for all files"
            )
        is_integer = not is_text and _are_integers([values[name] for values in path_values])
        schema = schema.append(pa.field(name, pa.int64() if is_integer else pa.string()))
    num_columns = len(path_values[0])
    file_with_more = next(
        (file for file, values in zip(files, path_values, strict=True) if len(values) > num_columns), None
    )
    if file_with_more is not None:
        problem = "its path has columns that other files do not have"
        raise unreadable_error(file_with_more.path, problem, "the same folders for all files")
    return schema


def _are_integers(texts: Sequence[str | None]) -> bool:
    """Whether folder names are whole numbers, each without leading zeros (so `01` is text)."""
    present = [text for text in texts if text is not None]
    return bool(present) and all(text.lstrip("-").isascii() and _is_integer(text) for text in present)


def _is_integer(text: str) -> bool:
    return text.lstrip("-").isdigit() and str(int(text)) == text and abs(int(text)) < 2**63


def _append_values(batch: pa.RecordBatch, schema: pa.Schema, values: dict[str, str | None]) -> pa.RecordBatch:
    arrays = list(batch.columns)
    for name, value in values.items():
        constant = pa.array([value], pa.string()).cast(schema.field(name).type)
        arrays.append(pa.repeat(constant[0], batch.num_rows))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
