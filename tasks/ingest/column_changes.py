"""The changes of columns that a recipe's `data` names, in the order in which they are made."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.ingest.list_columns import make_lists
from bloomery.tasks.ingest.option_names import option_names, place_of_options
from bloomery.tasks.ingest.readers.base import RowStream
from bloomery.tasks.ingest.readers.sequences.nested_arrays import flat_type, nesting_depth, require_sizes

# Characters that cannot be seen, but make one text differ from another: soft hyphen, zero-width space, marks of
# direction, byte order mark. Joiners are kept inside a text, since words and emojis need them.
_INVISIBLE = "\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff"
_JOINERS = "\u200c\u200d"
# In RE2: what `normalize_text` changes, and combining marks, which it may compose.
_ABNORMAL = (
    r"^\s|\s$|[\t-\r\x1c-\x1f\x{85}\p{Zl}\p{Zp}]|[^\P{Zs} ]|  "
    r"|[\x{ad}\x{200b}-\x{200f}\x{202a}-\x{202e}\x{2060}\x{2066}-\x{2069}\x{feff}]|\p{Mn}"
)


def change_columns(rows: RowStream, data: DataSource) -> RowStream:
    """Returns the rows after `drop`, `flatten`, `row_id`, `rename`, `normalize`, `missing`, `replace` and `lists`.

    Raises:
        RecipeInvalid: an option names a column that does not exist, or whose type it does not suit.
    """
    rows = _rename_columns(_add_row_numbers(_flatten_columns(drop_columns(rows, data), data), data), data)
    rows = _change_values(rows, _normalizers(rows.schema, data))
    rows = _change_values(rows, _missing_markers(rows.schema, data))
    return make_lists(_change_values(rows, _replacers(rows.schema, data)), data)


def drop_columns(rows: RowStream, data: DataSource) -> RowStream:
    """Returns the rows without the columns of `drop`."""
    if not data.drop:
        return rows
    unknown = [name for name in data.drop if name not in rows.schema.names]
    if unknown and not (data.kind == "csv" and data.unit == "file"):  # there, the reader leaves out columns of files
        raise _recipe_error(f"there is no column {', '.join(unknown)} to leave out", rows.schema, "drop")
    return select_columns(rows, [name for name in rows.schema.names if name not in data.drop])


def select_columns(rows: RowStream, names: list[str]) -> RowStream:
    """Returns the rows with these columns alone."""
    schema = pa.schema([rows.schema.field(name) for name in names])
    batches = (pa.RecordBatch.from_arrays([batch[name] for name in names], schema=schema) for batch in rows.batches)
    return rows._replace(schema=schema, batches=batches)


def _flatten_columns(rows: RowStream, data: DataSource) -> RowStream:
    """Returns the rows with the columns of `flatten` as arrays without inner arrays."""
    for name, sizes in (data.flatten or {}).items():
        depth = nesting_depth(rows.schema.field(name).type) if name in rows.schema.names else 0
        if depth != len(sizes) + 1:
            problem = f"column {name} has arrays {depth} deep" if depth else f"there is no column {name} of arrays"
            raise _recipe_error(f"{problem}, and there are {len(sizes)} inner lengths", rows.schema, "flatten")
    if not data.flatten:
        return rows
    schema = pa.schema([field.with_type(_flat_type(field, data)) for field in rows.schema])
    return _change_values(rows, {name: _flattener(sizes) for name, sizes in data.flatten.items()}, schema)


def _flat_type(field: pa.Field, data: DataSource) -> pa.DataType:
    return flat_type(field.type) if field.name in (data.flatten or {}) else field.type


def _flattener(sizes: tuple[int, ...]) -> ColumnChange:
    return lambda column: require_sizes(column, sizes)


def is_abnormal(texts: pa.Array) -> pa.BooleanArray:
    """True for each text that `normalize_texts` may change."""
    return pc.match_substring_regex(texts, _ABNORMAL)


def normalize_texts(texts: pa.Array) -> pa.Array:
    """Returns the texts in composed Unicode, without invisible characters and with plain single spaces."""
    encoded = texts.dictionary_encode()
    is_changed = pc.fill_null(is_abnormal(encoded.dictionary), False)
    if not is_changed.true_count:
        return texts
    pairs = zip(encoded.dictionary.to_pylist(), is_changed.to_pylist(), strict=True)
    distinct = [normalize_text(text) if changed else text for text, changed in pairs]
    return pa.array(distinct, pa.string()).take(encoded.indices)


def normalize_text(text: str) -> str:
    """Returns one text, normalized."""
    composed = unicodedata.normalize("NFC", re.sub(f"[{_INVISIBLE}]", "", text))
    return " ".join(composed.split()).strip(_JOINERS + " ")


def mark_missing(values: pa.Array, markers: tuple[str, ...]) -> pa.Array:
    """Returns the values with null in place of each that is one of the markers; of numbers, `NaN` is a marker."""
    if pa.types.is_string(values.type):
        is_missing = pc.is_in(values, pa.array(markers, pa.string()))
    else:
        is_missing = pc.fill_null(pc.is_nan(values), False)
    return pc.if_else(is_missing, pa.scalar(None, values.type), values)


def _add_row_numbers(rows: RowStream, data: DataSource) -> RowStream:
    """Adds the column `row_id` in front if the recipe asks for one; as text where all columns are text."""
    has_own_numbers = data.kind == "idx" and data.row_id is None
    name = "id" if has_own_numbers else data.row_id
    if name is None:
        return rows
    require_unused(name, rows.schema, "row_id")
    arrow_type = pa.string() if data.is_text else pa.int64()
    schema = rows.schema.insert(0, pa.field(name, arrow_type))

    def batches() -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in rows.batches:
            numbers = pa.array(np.arange(start, start + batch.num_rows, dtype=np.int64)).cast(arrow_type)
            start += batch.num_rows
            yield pa.RecordBatch.from_arrays([numbers, *batch.columns], schema=schema)

    return rows._replace(schema=schema, batches=batches())


def _rename_columns(rows: RowStream, data: DataSource) -> RowStream:
    new_names = data.rename or {}
    unknown = sorted(set(new_names) - set(rows.schema.names))
    if unknown:
        raise _recipe_error(f"there is no column {', '.join(unknown)} to rename", rows.schema, "rename")
    names = [new_names.get(name, name) for name in rows.schema.names]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise _recipe_error(f"two columns would have the name {', '.join(duplicates)}", rows.schema, "rename")
    schema = pa.schema([(name, field.type) for name, field in zip(names, rows.schema, strict=True)])
    renamed = (pa.RecordBatch.from_arrays(batch.columns, schema=schema) for batch in rows.batches)
    return rows._replace(schema=schema, batches=renamed)


ColumnChange = Callable[[pa.Array], pa.Array]


def _change_values(rows: RowStream, changes: Mapping[str, ColumnChange], schema: pa.Schema | None = None) -> RowStream:
    """Returns the rows with changed values in the columns of `changes`; types stay, unless there is a `schema`."""
    if not changes:
        return rows

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches:
            columns = [
                changes[name](column) if name in changes else column
                for name, column in zip(rows.schema.names, batch.columns, strict=True)
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=schema or rows.schema)

    return rows._replace(schema=schema or rows.schema, batches=batches())


def _normalizers(schema: pa.Schema, data: DataSource) -> dict[str, ColumnChange]:
    for name in data.normalize or ():
        _require_text(name, schema, "normalize")
    return dict.fromkeys(data.normalize or (), normalize_texts)


def _missing_markers(schema: pa.Schema, data: DataSource) -> dict[str, ColumnChange]:
    changes = {}
    for name, markers in data.missing_by_column.items():
        is_number = name in schema.names and pa.types.is_floating(schema.field(name).type)
        # The reader of JSON reads texts among numbers and booleans as null.
        if data.kind in ("json", "jsonl") and name in schema.names and not pa.types.is_string(schema.field(name).type):
            markers = ("NaN",) if is_number and "NaN" in markers else ()
        if not (is_number and markers == ("NaN",)) and markers:
            _require_text(name, schema, "missing")
        if markers:
            changes[name] = _missing_marker(markers)
    return changes


def _missing_marker(markers: tuple[str, ...]) -> ColumnChange:
    return lambda column: mark_missing(column, markers)


def _replacers(schema: pa.Schema, data: DataSource) -> dict[str, ColumnChange]:
    for name in data.replace or {}:
        _require_text(name, schema, "replace")
    return {name: _replacer(texts) for name, texts in (data.replace or {}).items()}


def _replacer(texts: Mapping[str, str]) -> ColumnChange:
    def replace(column: pa.Array) -> pa.Array:
        indices = pc.index_in(column, pa.array(list(texts), pa.string()))
        return pc.coalesce(pa.array(list(texts.values()), pa.string()).take(indices), column)

    return replace


def _require_text(name: str, schema: pa.Schema, option: str) -> None:
    if name not in schema.names or not pa.types.is_string(schema.field(name).type):
        raise _recipe_error(f"there is no text column {name}", schema, option)


def require_unused(name: str, schema: pa.Schema, option: str) -> None:
    if name in schema.names:
        raise _recipe_error(f"the source already has a column {name}", schema, option)


def _recipe_error(problem: str, schema: pa.Schema, option: str) -> RecipeInvalid:
    return RecipeInvalid(
        problem,
        required=f"names that fit the source's columns: {', '.join(schema.names)}",
        where=f"{place_of_options()}, {option}",
        remedy=f"correct {option_names(option)}",
    )
