"""Makes lists of texts from other columns, as a recipe's `data.lists` says: sets of labels in one column."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.list_column import ListColumn
from bloomery.tasks.infrastructure.list_texts import split_sequence, split_text
from bloomery.tasks.ingest.option_names import option_names, place_of_options
from bloomery.tasks.ingest.readers.base import RowStream

_LISTS = pa.list_(pa.string())
_LIST_TYPES = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}  # also 1.0 and 0.0


def make_lists(rows: RowStream, data: DataSource) -> RowStream:
    """Returns the rows with each column of `data.lists` as a list of texts, in the order of the row.

    Each text is there once, unless the recipe says that texts may repeat.

    A missing text is an empty list. A row that cannot be read gets null, which a contract's `required` quarantines:
    where a column of 0 and 1 has another value, or none, or a text in brackets is neither JSON nor a list of Python.

    Raises:
        RecipeInvalid: there is no such column, or its type does not suit.
    """
    for name, options in (data.lists or {}).items():
        rows = _collect_flags(rows, name, options) if options.columns is not None else _split(rows, name, options)
    return rows


def _collect_flags(rows: RowStream, name: str, options: ListColumn) -> RowStream:
    """Returns the rows with the list behind the other columns, and without the columns of 0 and 1."""
    assert options.columns is not None
    columns = options.columns
    missing = [column for column in columns if column not in rows.schema.names]
    if missing:
        raise _lists_error(f"there is no column {', '.join(missing)} to collect", rows.schema)
    kept = [column for column in rows.schema.names if column not in columns]
    if name in kept:
        raise _lists_error(f"the source already has a column {name}", rows.schema)
    for column in columns:
        kind = rows.schema.field(column).type
        if pa.types.is_nested(kind) or pa.types.is_temporal(kind):
            raise _lists_error(f"column {column} has {kind}, not 0 and 1", rows.schema)
    schema = pa.schema([*(rows.schema.field(column) for column in kept), pa.field(name, _LISTS)])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches:
            flags = [_read_flags(batch[column]) for column in columns]
            is_true = np.stack([flag.fill_null(False).to_numpy(zero_copy_only=False) for flag in flags], axis=1)
            is_valid = np.logical_and.reduce([np.asarray(flag.is_valid()) for flag in flags], axis=0)
            lists = _take_names(columns, is_true & is_valid[:, None], is_valid)
            arrays = [*(batch[column] for column in kept), _keep(lists, options)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    return rows._replace(schema=schema, batches=batches())


def _take_names(columns: tuple[str, ...], is_true: np.ndarray, is_valid: np.ndarray) -> pa.ListArray:
    """The names of the columns that are true in each row; null where a row is not valid."""
    ends = np.cumsum(is_true.sum(axis=1))
    offsets = pa.array(np.concatenate([[0], ends]).astype(np.int32), mask=np.append(~is_valid, False))
    return pa.ListArray.from_arrays(offsets, pa.array(columns, pa.string()).take(pa.array(np.nonzero(is_true)[1])))


def _read_flags(values: pa.Array) -> pa.Array:
    """The values as booleans; null for any other than 0 and 1."""
    if pa.types.is_boolean(values.type):
        return values
    if pa.types.is_null(values.type):
        return values.cast(pa.bool_())
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        texts = pc.replace_substring_regex(pc.utf8_lower(pc.utf8_trim_whitespace(values)), r"^([01])\.0+$", r"\1")
        indices = pc.index_in(texts.cast(pa.string()), pa.array(list(_FLAGS)))
        return pa.array(list(_FLAGS.values())).take(indices)
    is_flag = pc.or_(pc.equal(values, pa.scalar(0, values.type)), pc.equal(values, pa.scalar(1, values.type)))
    return pc.if_else(is_flag, pc.equal(values, pa.scalar(1, values.type)), pa.scalar(None, pa.bool_()))


def _split(rows: RowStream, name: str, options: ListColumn) -> RowStream:
    """Returns the rows with the column `name` as a list of texts; it is a text with a separator, or a list."""
    kind = rows.schema.field(name).type if name in rows.schema.names else None
    is_text = kind is not None and pa.types.is_string(kind)
    is_list = kind is not None and any(test(kind) for test in _LIST_TYPES)
    if kind is None or not (is_text or is_list or pa.types.is_null(kind)):
        found = f"there is no column {name}" if kind is None else f"column {name} has {kind}"
        raise _lists_error(f"{found}, but a list is made of texts", rows.schema)
    if is_text and options.separator is None:
        raise _lists_error(f"column {name} has texts, and `lists` names no separator for them", rows.schema)
    position = rows.schema.get_field_index(name)
    schema = rows.schema.set(position, pa.field(name, _LISTS))

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in rows.batches:
            columns = list(batch.columns)
            if is_text:
                columns[position] = _keep(_split_texts(batch[name], options), options)
            else:
                lists = batch[name].cast(_LISTS)
                columns[position] = lists if options.repeats else _keep(_strip(lists), options)
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    return rows._replace(schema=schema, batches=batches())


def _split_texts(texts: pa.Array, options: ListColumn) -> pa.Array:
    encoded = texts.dictionary_encode()
    split = split_sequence if options.repeats else split_text
    distinct = [split(text, options.separator) for text in encoded.dictionary.to_pylist()]
    lists = pa.array([*distinct, []], _LISTS)
    return lists.take(encoded.indices.fill_null(len(distinct)))


def _strip(lists: pa.ListArray) -> pa.ListArray:
    """The lists without white space around their elements, each element once; without null and blank ones."""
    encoded = pc.utf8_trim_whitespace(lists.flatten()).dictionary_encode()
    elements = encoded.cast(pa.string())
    positions = pc.fill_null(encoded.indices, -1).to_numpy().astype(np.int64)
    pairs = _owners(lists) * (len(encoded.dictionary) + 1) + positions + 1
    is_first = np.zeros(len(elements), dtype=bool)
    is_first[np.unique(pairs, return_index=True)[1]] = True
    is_named = pc.fill_null(pc.not_equal(elements, ""), False).to_numpy(zero_copy_only=False)
    return _filter(lists, elements, is_first & is_named)


def _keep(lists: pa.ListArray, options: ListColumn) -> pa.ListArray:
    """The lists without the elements that `values` does not name."""
    if options.values is None:
        return lists
    elements = lists.flatten()
    is_kept = pc.fill_null(pc.is_in(elements, pa.array(options.values, pa.string())), False)
    return _filter(lists, elements, is_kept.to_numpy(zero_copy_only=False))


def _owners(lists: pa.ListArray) -> np.ndarray:
    """The position of the list of each flattened element. A null list of a fixed size has none."""
    return np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())


def _filter(lists: pa.ListArray, elements: pa.Array, is_kept: np.ndarray) -> pa.ListArray:
    """The lists with those of their flattened `elements` that are kept."""
    counts = np.bincount(_owners(lists)[is_kept], minlength=len(lists))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    is_null = np.append(np.asarray(lists.is_null()), False)
    return pa.ListArray.from_arrays(pa.array(offsets, mask=is_null), elements.filter(pa.array(is_kept)))


def _lists_error(problem: str, schema: pa.Schema) -> RecipeInvalid:
    return RecipeInvalid(
        problem,
        required=f"names of columns in the source: {', '.join(schema.names)}",
        where=f"{place_of_options()}, lists",
        remedy=f"correct {option_names('lists')}",
    )
