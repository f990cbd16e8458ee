"""Category inputs: one-hot, index, hash or target encoding.

Shapes: B rows, S slots (the missing value, `other`, then the categories in order), K classes.
"""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.requests.columnar_rows import ColumnarRows
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import CategoryInput
from bloomery.models.features.kinds.target_encoding import (
    COUNT,
    TOTAL,
    TargetCounts,
    TargetMeans,
    exact_group_sums,
    fit_target_counts,
    fit_target_means,
)
from bloomery.models.features.statistics.arrow_arrays import Rows, combine_chunks, to_floats, to_integers
from bloomery.models.features.statistics.column_counts import (
    CategoryCounts,
    CategoryKey,
    ColumnStatistics,
    NumericStatistics,
    limit_counts,
    numeric_statistics,
)
from bloomery.models.features.statistics.moments import Moments
from bloomery.models.features.statistics.stable_hash import stable_hashes

MAX_LISTED_CATEGORIES = 200_000
_MISSING, _OTHER, _UNKNOWN = 0, 1, -1
_MAX_LOOKUPS = 64  # up to so many values, Python looks them up faster than Arrow builds a table
_FOLD_SALT, _BUCKET_SALT = 1, 2


class Vocabulary(Document):
    """The categories of one column, in order; with `unknown: refuse` also the rare ones."""

    names: tuple[int | str, ...]
    rare: tuple[int | str, ...] = ()
    target: TargetCounts | TargetMeans | None = None

    @cached_property
    def slot_of(self) -> dict[int | str | None, int]:
        slots: dict[int | str | None, int] = {name: position + 2 for position, name in enumerate(self.names)}
        return {**slots, **dict.fromkeys(self.rare, _OTHER), None: _MISSING}

    def slots_of(self, values: list[int | str | None]) -> list[int]:
        """The slot of each value, or -1 for an unknown value."""
        slot_of = self.slot_of
        return [slot_of.get(value, _UNKNOWN) for value in values]

    def slots(self, values: pa.Array) -> np.ndarray:
        """The same for an Arrow array: int64 (B,)."""
        if len(values) <= _MAX_LOOKUPS:
            return np.array(self.slots_of(values.to_pylist()), np.int64)
        positions = pc.index_in(values, pa.array([*self.names, *self.rare], values.type)).fill_null(_UNKNOWN - 2)
        slots = positions.to_numpy(zero_copy_only=False).astype(np.int64) + 2
        slots[slots >= len(self.names) + 2] = _OTHER
        slots[values.is_null().to_numpy(zero_copy_only=False)] = _MISSING
        return slots


class FittedCategories(Document):
    """The fitted state of a category input: the vocabulary of each column; empty for encoding hash."""

    kind: Literal["category"]
    columns: tuple[Vocabulary, ...]
    target_width: int  # values per column of encoding target: number of classes - 1, or 1 for a regression


def as_categories(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """A column as text or int64; booleans become 0 and 1."""
    array = combine_chunks(column)
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pa.types.is_string(array.type) or pa.types.is_int64(array.type):
        return array
    is_number = pa.types.is_integer(array.type) or pa.types.is_boolean(array.type)
    return array.cast(pa.int64() if is_number else pa.string())


def class_names(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The labels of a classification as text or int64; booleans become `false` and `true`."""
    array = combine_chunks(values)
    return array.cast(pa.string()) if pa.types.is_boolean(array.type) else as_categories(array)


def fold_hashes(keys: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """A hash of each row's key, uint64 (B,); modulo the number of folds it is the row's fold."""
    return stable_hashes(combine_chunks(keys), _FOLD_SALT)


def partial_fit(source: CategoryInput, features: Features, rows: Rows) -> tuple[ColumnStatistics, ...]:
    """Counts the rows of each category; for target encoding, of each category, label and fold.

    For the target encoding of a regression, the statistics of the labels of each fold follow.
    """
    if source.encoding == "hash":
        return ()
    if source.encoding == "target" and features.task == "regression":
        folds = _fold_numbers(source, features, rows)
        label_values = to_floats(combine_chunks(rows[features.label_column]))
        counts = [_sum_targets(rows[column], folds, label_values, source.num_folds) for column in source.columns]
        return (*counts, *(numeric_statistics(label_values[folds == fold]) for fold in range(source.num_folds)))
    if source.encoding == "target":
        return tuple(_count_targets(source, features, rows, column) for column in source.columns)
    return tuple(count_categories(rows[column], MAX_LISTED_CATEGORIES) for column in source.columns)


def _fold_numbers(source: CategoryInput, features: Features, rows: Rows) -> np.ndarray:
    return (fold_hashes(rows[features.key]) % np.uint64(source.num_folds)).astype(np.int64)


def count_categories(column: pa.Array | pa.ChunkedArray, limit: int) -> CategoryCounts:
    """Counts each category of a column, if there are at most `limit`."""
    value_counts = pc.value_counts(as_categories(column))
    names, counts = value_counts.field("values").to_pylist(), value_counts.field("counts").to_pylist()
    return limit_counts({(name,): count for name, count in zip(names, counts, strict=True)}, limit)


def _count_targets(source: CategoryInput, features: Features, rows: Rows, column: str) -> CategoryCounts:
    names = as_categories(rows[column]).dictionary_encode(null_encoding="encode")
    labels = class_names(rows[features.label_column]).dictionary_encode(null_encoding="encode")
    folds = _fold_numbers(source, features, rows)
    sizes = (len(names.dictionary), len(labels.dictionary), source.num_folds)
    indices = (to_integers(names.indices)[0], to_integers(labels.indices)[0], folds)
    flat, counts = np.unique(np.ravel_multi_index(indices, sizes), return_counts=True)
    values, classes = names.dictionary.to_pylist(), labels.dictionary.to_pylist()
    counts_by_key: dict[CategoryKey, int] = {
        (values[value], classes[label], int(fold)): int(count)
        for value, label, fold, count in zip(*np.unravel_index(flat, sizes), counts, strict=True)
    }
    return limit_counts(counts_by_key, MAX_LISTED_CATEGORIES)


def _sum_targets(
    column: pa.Array | pa.ChunkedArray, folds: np.ndarray, label_values: np.ndarray, num_folds: int
) -> CategoryCounts:
    """Counts the rows of each category and fold, and sums their labels exactly."""
    names = as_categories(column).dictionary_encode(null_encoding="encode")
    values = names.dictionary.to_pylist()
    flat = to_integers(names.indices)[0] * num_folds + folds
    groups, counts = np.unique(flat, return_counts=True)
    totals = exact_group_sums(flat, label_values)
    counts_by_key: dict[CategoryKey, int] = {}
    for group, count in zip(groups.tolist(), counts.tolist(), strict=True):
        value, fold = values[group // num_folds], group % num_folds
        counts_by_key |= {(value, COUNT, fold): count, (value, TOTAL, fold): totals[group]}
    return limit_counts(counts_by_key, MAX_LISTED_CATEGORIES)


def fit(source: CategoryInput, statistics: tuple[ColumnStatistics, ...], classes: Classes) -> FittedCategories:
    """Builds the vocabularies. `classes` is empty for a regression.

    Raises:
        DataUnfit: a column has too many categories to list.
    """
    counts = [stats for stats in statistics if isinstance(stats, CategoryCounts)]
    folds = tuple(stats.moments for stats in statistics if isinstance(stats, NumericStatistics))
    columns = [
        _build_vocabulary(source, column, column_counts, classes, folds)
        for column, column_counts in zip(source.columns, counts, strict=False)
    ]
    return FittedCategories(kind="category", columns=tuple(columns), target_width=len(classes) - 1 if classes else 1)


def _build_vocabulary(
    source: CategoryInput, column: str, category_counts: CategoryCounts, classes: Classes, folds: tuple[Moments, ...]
) -> Vocabulary:
    if category_counts.is_full:
        raise DataUnfit(
            f"column {column} has more than {category_counts.limit:,} different values"
            + (", counted by label and fold" if source.encoding == "target" else ""),
            required=f"at most {category_counts.limit:,} to keep them in a list",
            where=f"column {column}, encoding {source.encoding}",
            remedy="use `encoding: hash` with `num_buckets`, or drop the column if it only identifies rows",
        )
    counts = _rows_per_category(category_counts, is_summed=bool(folds))
    by_count = sorted((-count, name) for name, count in counts.items() if count >= source.min_count)
    names = tuple(sorted(name for _, name in by_count[: source.max_categories]))
    rare = tuple(sorted(set(counts) - set(names)))
    vocabulary = Vocabulary(names=names, rare=rare if source.unknown == "refuse" else ())
    if source.encoding != "target":
        return vocabulary
    slot_of: dict[int | str | None, int] = {**dict.fromkeys(rare, _OTHER), **vocabulary.slot_of}
    slotted: dict[CategoryKey, int] = {}
    for (name, label, fold), count in category_counts.counts.items():
        position = (slot_of[name], label, fold)
        slotted[position] = slotted.get(position, 0) + count
    target: TargetCounts | TargetMeans
    if folds:
        target = fit_target_means(slotted, len(names) + 2, folds, source.smoothing)
    else:
        target = fit_target_counts(slotted, len(names) + 2, source.num_folds, classes, source.smoothing)
    return vocabulary.model_copy(update={"target": target})


def _rows_per_category(category_counts: CategoryCounts, *, is_summed: bool) -> dict[int | str, int]:
    """The rows of each category, from counts that may also contain sums of labels."""
    counts: dict[int | str, int] = {}
    for (name, *group), count in category_counts.counts.items():
        if name is not None and not (is_summed and group[0] == TOTAL):
            counts[name] = counts.get(name, 0) + count
    return counts


def shape(source: CategoryInput, fitted: FittedCategories) -> tuple[int, ...]:
    return (sum(_column_widths(source, fitted)),)


def _column_widths(source: CategoryInput, fitted: FittedCategories) -> list[int]:
    if source.num_buckets is not None:
        return [source.num_buckets + 1] * len(source.columns)
    if source.encoding == "one_hot":
        return [len(vocabulary.names) + 2 for vocabulary in fitted.columns]
    return [1 if source.encoding == "index" else fitted.target_width] * len(source.columns)


def index_columns(source: CategoryInput, fitted: FittedCategories) -> list[tuple[int, int]]:
    """Each position of the input that holds a slot number, with the number of slots."""
    if source.encoding != "index":
        return []
    return [(position, len(vocabulary.names) + 2) for position, vocabulary in enumerate(fitted.columns)]


def transform_into(
    source: CategoryInput, fitted: FittedCategories, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out` float32 (B, F), all 0 before. `folds` are given for rows of the training split only."""
    start = 0
    for position, (column, width) in enumerate(zip(source.columns, _column_widths(source, fitted), strict=True)):
        column_out = out[:, start : start + width]
        start += width
        if source.num_buckets is not None:
            column_out[np.arange(rows.num_rows), _buckets(as_categories(rows[column]), source.num_buckets)] = 1
            continue
        slots = _row_slots(source, column, fitted.columns[position], rows)
        target = fitted.columns[position].target
        if target is not None:
            column_out[:] = (
                target.encoding[slots]
                if folds is None
                else target.out_of_fold_encoding[folds % target.num_folds, slots]
            )
        elif source.encoding == "index":
            column_out[:, 0] = slots
        else:
            column_out[np.arange(rows.num_rows), slots] = 1


def _buckets(names: pa.Array, num_buckets: int) -> np.ndarray:
    """Bucket 0 for the missing value; buckets 1 to `num_buckets` by a hash of the value."""
    if len(names) > _MAX_LOOKUPS:
        coded = names.dictionary_encode(null_encoding="encode")
        return _hash_buckets(coded.dictionary, num_buckets)[coded.indices.to_numpy(zero_copy_only=False)]
    return _hash_buckets(names, num_buckets)


def _hash_buckets(names: pa.Array, num_buckets: int) -> np.ndarray:
    buckets = (stable_hashes(names, _BUCKET_SALT) % np.uint64(num_buckets)).astype(np.int64) + 1
    if names.null_count:
        buckets[names.is_null().to_numpy(zero_copy_only=False)] = 0
    return buckets


def _row_slots(source: CategoryInput, column: str, vocabulary: Vocabulary, rows: Rows) -> np.ndarray | list[int]:
    """The slot of each row, int64 (B,).

    Raises:
        DataUnfit: a value is unknown, and the recipe says `unknown: refuse`.
    """
    if isinstance(rows, ColumnarRows) and (values := rows.strings(column)) is not None:
        slot_list = vocabulary.slots_of(values)
        if _UNKNOWN not in slot_list:
            return slot_list
        slots = np.array(slot_list, np.int64)
    elif rows.num_rows <= _MAX_LOOKUPS:
        slots = vocabulary.slots(as_categories(rows[column]))
    else:
        coded = as_categories(rows[column]).dictionary_encode(null_encoding="encode")
        slots = vocabulary.slots(coded.dictionary)[coded.indices.to_numpy(zero_copy_only=False)]
    unknown = slots == _UNKNOWN
    if not unknown.any():
        return slots
    if source.unknown == "refuse":
        unseen = as_categories(rows[column])[int(unknown.argmax())].as_py()
        raise DataUnfit(
            f"column {column} has the value {unseen!r}, which is not in the training split",
            required="a value of the training split, since the recipe says `unknown: refuse`",
            where=f"column {column}, an input of kind category",
            remedy="correct the value, or set `unknown: other` in the recipe and train again",
        )
    slots[unknown] = _OTHER
    return slots
