"""Files that hold one sequence each: a file is a row, and its lines or array entries are the steps of the sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.data_contracts.validation.casting import cast_column
from bloomery.tasks.ingest import locations
from bloomery.tasks.ingest.locations import FileLocation
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream, equal_lists, unreadable_error
from bloomery.tasks.ingest.readers.media.media_files import path_fields, path_values
from bloomery.tasks.ingest.readers.text_files import delimited

VALUES = "values"  # the column of the sequences
_BATCH_FILES = 64
_ROW_GROUP_FILES = 1_024


class FirstFault(MalformedWriter):
    """Keeps why a file has a malformed line: then the file as a whole is malformed."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def add(self, file: str, line: int | None, text: str, reason: str) -> None:
        self.reason = self.reason or f"line {line}: {reason}"


StepReader = Callable[[FileLocation], pa.Array | str]


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns a row per file: `path`, `label` (its folder) or the groups of `path_pattern`, and `values`.

    `values` has an array for each step: the numbers of the columns that `drop` does not name, or the entries of an
    array (.npy). Malformed are files with another header or width than the first one, with a malformed line, or with a
    cell that is no number.

    Raises:
        DataMissing: there is no file, or the first CSV file cannot be read.
    """
    files = locations.find_row_files(data, origin)
    schema = pa.schema([*path_fields(data), (VALUES, pa.list_(pa.list_(pa.float64())))])
    read_steps = _read_array if data.kind == "numpy" else _make_table_reader(files[0], data, schema)
    return RowStream(schema, _read_batches(files, data, schema, read_steps, malformed), _ROW_GROUP_FILES)


def _make_table_reader(first_file: FileLocation, data: DataSource, schema: pa.Schema) -> StepReader:
    """Returns a function that reads the steps of CSV files with the header of the first one."""
    header = delimited.read_schema(first_file, data)
    columns = [name for name in header.names if name not in (data.drop or ())]
    unknown = [name for name in data.drop or () if name not in (*header.names, *schema.names)]
    if unknown or not columns:
        problem = f"drop: there is no column {', '.join(unknown)}" if unknown else "drop: no column is left"
        raise unreadable_error(first_file.path, problem, f"some of {', '.join(header.names)}", options=("drop",))
    return lambda file: _read_table(file, data, header, columns)


def _read_batches(
    files: list[FileLocation], data: DataSource, schema: pa.Schema, read_steps: StepReader, malformed: MalformedWriter
) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, object]] = []
    for file in files:
        paths = path_values(data, file.relative)
        steps = read_steps(file)
        if isinstance(steps, str):
            malformed.add(file.relative, None, "", steps)
        elif paths is None:
            malformed.add(file.relative, None, "", f"a path that does not match {data.path_pattern!r}")
        else:
            rows.append({**paths, VALUES: steps.to_pylist()})
        if len(rows) == _BATCH_FILES:
            yield pa.RecordBatch.from_pylist(rows, schema=schema)
            rows = []
    yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _read_table(file: FileLocation, data: DataSource, header: pa.Schema, columns: list[str]) -> pa.Array | str:
    """Returns an array of numbers for each line of a file, or why there are none. A missing cell is null."""
    faults = FirstFault()
    try:
        schema = delimited.read_schema(file, data)
        if set(schema.names) != set(header.names):
            return f"the columns {', '.join(schema.names)}, where {', '.join(header.names)} are required"
        table = pa.Table.from_batches(delimited.read_batches(file, data, schema, faults), schema)
    except DataMissing as failure:
        return failure.found
    if faults.reason is not None:
        return faults.reason
    if not table.num_rows:
        return "no line below the header"
    values = []
    for name in columns:
        texts = table[name].combine_chunks()
        column, is_invalid = cast_column(texts, pa.float64())
        if is_invalid.true_count:
            return f"column {name}: {texts.filter(is_invalid)[0].as_py()!r} is no number"
        values.append(column)
    numbers = np.stack([column.to_numpy(zero_copy_only=False) for column in values], axis=1)
    is_missing = np.stack([column.is_null().to_numpy(zero_copy_only=False) for column in values], axis=1)
    return _to_steps(numbers, is_missing)


def _read_array(file: FileLocation) -> pa.Array | str:
    """Returns an array of numbers for each entry of an array in a file, or why there are none. NaN is null."""
    try:
        with file.open_file() as stream:
            array = np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, OSError) as failure:
        return f"no array of numbers: {failure}"
    if array.ndim not in (1, 2) or array.dtype.kind not in "biuf":
        shape = " x ".join(map(str, array.shape)) or "a single value"
        return f"an array {shape} of type {array.dtype}, where one or two axes of numbers are required"
    if not array.size:
        return "an array without values"
    numbers = array.reshape(len(array), -1).astype(np.float64)
    return _to_steps(numbers, np.isnan(numbers))


def _to_steps(numbers: np.ndarray, is_missing: np.ndarray) -> pa.Array:
    """Returns the rows of a matrix as arrays."""
    num_steps, width = numbers.shape
    return equal_lists(pa.array(numbers.reshape(-1), mask=is_missing.reshape(-1)), width, num_steps)
