"""Fits the label: the ordered classes, or for a regression the mean and deviation that standardise it.

The label of an embedding is a text, which the input encodes.

Shapes: B rows, K classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.output_units import ClassOutput, OutputUnits
from bloomery.data_contracts.records.tensor_layout import predicts_numbers
from bloomery.data_contracts.serving.entities import code_tags, tag_codes
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.kinds.category import class_names, count_categories
from bloomery.models.features.statistics.arrow_arrays import (
    FLOAT32_MAX,
    Rows,
    combine_chunks,
    list_array,
    list_offsets,
    to_floats,
)
from bloomery.models.features.statistics.column_counts import (
    CategoryCounts,
    ColumnStatistics,
    NumericStatistics,
    numeric_statistics,
)
from bloomery.models.features.word_pieces import EncodedWords

MAX_CLASSES = 100_000
MAX_TAGS = 32_767  # positions of tags are int16
IGNORED_LABEL = -100  # the class index of a null label: `ignore_index` of cross entropy


class StandardUnits(Document):
    """A label is mean + deviation * z, where z has mean 0 and deviation 1 over the training split."""

    mean: float
    deviation: float


def partial_fit(features: Features, rows: Rows) -> tuple[ColumnStatistics, ...]:
    """Counts the rows of each class, also where a row has several, or computes the statistics of a regression's labels.

    Those of several outputs are one for each; missing labels do not count.

    Raises:
        DataUnfit: a label of a regression is missing or not finite.
    """
    if features.task == "embedding":
        return (numeric_statistics(np.zeros(0)),)
    if features.task == "regression":
        return (numeric_statistics(regression_targets(features.label, rows[features.label_column])),)
    if features.task == "multitask":
        columns = split_columns(rows[features.label_column], len(features.label_columns))
        return tuple(count_categories(column, MAX_CLASSES) for column in columns)
    if features.labels is not None:
        values_BK = output_values(features.labels, rows[features.label_column])
        return tuple(numeric_statistics(column[~np.isnan(column)]) for column in values_BK.T)
    if features.task in ("multilabel", "tagging"):
        return (count_categories(class_names(combine_chunks(rows[features.label_column]).flatten()), MAX_CLASSES),)
    return (count_categories(class_names(rows[features.label_column]), MAX_CLASSES),)


def regression_targets(label: str, values: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The labels of a regression as float64 (B,).

    Raises:
        DataUnfit: a label is missing or not finite.
    """
    targets = to_floats(combine_chunks(values))
    invalid = np.flatnonzero(~np.isfinite(targets))
    if invalid.size:
        value = values[int(invalid[0])].as_py()
        raise DataUnfit(
            f"{'no value' if value is None else value} is the label of {invalid.size} row(s) of a regression",
            required="a finite number in every row",
            where=f"column {label}, the label of a regression",
            remedy="make the column required in the contract and state its limits, so that such rows are quarantined",
        )
    return targets


def output_values(names: Sequence[str], arrays: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Arrays of the labels `names` as float64 (B, K); nan where a label is missing.

    Raises:
        DataUnfit: a label is not finite.
    """
    flat = combine_chunks(arrays).flatten()
    values_BK = to_floats(flat).reshape(-1, len(names))
    is_missing_BK = flat.is_null().to_numpy(zero_copy_only=False).reshape(-1, len(names))
    invalid = np.argwhere(~np.isfinite(values_BK) & ~is_missing_BK)
    if len(invalid):
        row, position = invalid[0]
        raise DataUnfit(
            f"{values_BK[row, position]} is the label of {len(np.unique(invalid[:, 0]))} row(s) of a regression",
            required="a finite number, or null where the label is not known",
            where=f"column {names[position]}, a label of a regression",
            remedy="state the limits of the column in the contract, so that such rows are quarantined",
        )
    return np.where(is_missing_BK, np.nan, values_BK)


def fit_outputs(features: Features, labels: Sequence[ColumnStatistics]) -> tuple[OutputUnits, ...]:
    """The units of each output of a regression with several labels; empty for other tasks.

    Raises:
        DataUnfit: an output has no label, or all its labels are equal.
    """
    names = features.label_columns if features.task == "multioutput" else ()
    statistics = labels or [numeric_statistics(np.zeros(0)) for _ in names]
    units = (_fit_units(name, values) for name, values in zip(names, statistics if names else (), strict=True))
    return tuple(
        OutputUnits(name=name, mean=unit.mean, deviation=unit.deviation)
        for name, unit in zip(names, units, strict=True)
    )


def fit_classes(features: Features, labels: ColumnStatistics | None) -> Classes:
    """The classes in order; empty for a regression and an embedding.

    Raises:
        DataUnfit: there are fewer than two, or more than `MAX_CLASSES`.
    """
    if predicts_numbers(features.task) or features.task in ("multitask", "embedding"):
        return ()
    return _fit_classes(
        features.label, labels, features.order, max_classes=MAX_TAGS if features.task == "tagging" else MAX_CLASSES
    )


def _fit_classes(
    label: str, labels: ColumnStatistics | None, order: Classes | None = None, *, max_classes: int = MAX_CLASSES
) -> Classes:
    class_counts = labels if isinstance(labels, CategoryCounts) else CategoryCounts(MAX_CLASSES)
    classes = tuple(sorted(name for (name,) in class_counts.counts if name is not None))
    is_full = class_counts.is_full or len(classes) > max_classes
    if is_full or len(classes) < 2:
        values = f"more than {max_classes:,}" if is_full else str(len(classes))
        raise DataUnfit(
            f"the training split has {values} class(es): {', '.join(map(str, classes[:20])) or 'none'}",
            required=f"at least two classes, and at most {max_classes:,}",
            where=f"column {label}",
            remedy="check that the recipe's `features.label` names the right column and that the data is complete",
        )
    return classes if order is None else _order_classes(label, order, classes)


def _order_classes(label: str, order: Classes, classes: Classes) -> Classes:
    """The classes in their order from the lowest to the highest.

    Raises:
        DataUnfit: a class is missing in the order, or has no row.
    """
    missing = [name for name in classes if name not in order]
    absent = [name for name in order if name not in classes]
    if not missing and not absent:
        return order
    listing = ", ".join(map(str, (missing or absent)[:5]))
    finding = "rows with classes that the order does not name" if missing else "no row of classes in the order"
    raise DataUnfit(
        f"the training split has {finding}: {listing}",
        required="exactly the classes of the training split",
        where=f"the recipe's features.order; column {label}",
        remedy=f"{'add them at their places' if missing else 'remove them, or add rows'}; the classes are "
        f"{', '.join(map(str, classes[:20]))}",
    )


def fit_units(features: Features, labels: ColumnStatistics | None) -> StandardUnits | None:
    """The mean and deviation of a regression's labels; None for other tasks.

    Raises:
        DataUnfit: there is no label, or all labels are equal.
    """
    if features.task != "regression":
        return None
    return _fit_units(features.label, labels)


def _fit_units(label: str, labels: ColumnStatistics | None) -> StandardUnits:
    values = labels if isinstance(labels, NumericStatistics) else numeric_statistics(np.zeros(0))
    if values.minimum is None or values.minimum == values.maximum:
        finding = "no label" if values.minimum is None else f"the label {values.minimum:g} in every row"
        raise DataUnfit(
            f"the training split has {finding}",
            required="at least two different labels",
            where=f"column {label}",
            remedy="check that the recipe's `features.label` names the right column and that the data is complete",
        )
    return StandardUnits(mean=values.moments.mean(), deviation=values.moments.deviation())


def split_columns(arrays: pa.Array | pa.ChunkedArray, num_columns: int) -> list[pa.Array]:
    """The columns of arrays of `num_columns` elements each."""
    rows = combine_chunks(arrays)
    return [pc.list_element(rows, position) for position in range(num_columns)]


def fit_class_outputs(
    features: Features, labels: Sequence[ColumnStatistics], integer_columns: Collection[str] = ()
) -> tuple[ClassOutput, ...]:
    """The classes of each of several labels, those of `integer_columns` as integers; empty for other tasks.

    Raises:
        DataUnfit: a label has fewer than two classes, or too many.
    """
    if features.task != "multitask":
        return ()
    statistics = labels or [CategoryCounts(MAX_CLASSES) for _ in features.label_columns]
    outputs = []
    for name, counts in zip(features.label_columns, statistics, strict=True):
        classes = _fit_classes(name, counts)
        if name in integer_columns:  # the array of a row holds them as texts
            classes = tuple(sorted(map(int, classes)))
        outputs.append(ClassOutput(name=name, classes=classes))
    return tuple(outputs)


def encode_class_outputs(outputs: Sequence[ClassOutput], arrays: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The class index of each of several labels, int64 (B, M); `IGNORED_LABEL` where a label is missing.

    Raises:
        DataUnfit: a label is not a class of the training split.
    """
    columns = split_columns(arrays, len(outputs))
    positions = [
        class_positions(tuple(map(str, output.classes)), output.name, column, may_be_null=True)
        for output, column in zip(outputs, columns, strict=True)
    ]
    return np.stack([np.asarray(combine_chunks(column)) for column in positions], axis=1)


def standardise(units: StandardUnits, values: np.ndarray) -> np.ndarray:
    """Standardises labels float64 (B,): float32 (B,), finite."""
    with np.errstate(over="ignore"):
        standard = (values - units.mean) / units.deviation
    return np.clip(standard, -FLOAT32_MAX, FLOAT32_MAX).astype(np.float32)


def class_positions(
    classes: Classes, label: str, values: pa.Array | pa.ChunkedArray, *, may_be_null: bool = False
) -> pa.Array | pa.ChunkedArray:
    """The class index of each label, int64; `IGNORED_LABEL` for a null if `may_be_null`.

    Raises:
        DataUnfit: a label is not a class of the training split.
    """
    names = class_names(values)
    positions = pc.index_in(names, pa.array(classes, names.type)).cast(pa.int64())
    if may_be_null:
        positions = pc.if_else(pc.is_null(names), IGNORED_LABEL, positions)
    if positions.null_count:
        unknown = pc.unique(names.filter(pc.is_null(positions))).to_pylist()
        raise _unknown_labels_error(label, unknown, "drop the classes from the data")
    return positions


def encode_tags(classes: Classes, label: str, tags: pa.Array | pa.ChunkedArray, words: EncodedWords) -> pa.Array:
    """Lists of tags as lists of T int16: the position of a word's tag at its first token, else `IGNORED_LABEL`.

    Raises:
        DataUnfit: a row has no tags, or not one for each word, or a tag is not one of the training split.
    """
    _, is_first_BT, num_words_B = words
    lists = combine_chunks(tags)
    lengths_B = pc.list_value_length(lists).fill_null(-1).to_numpy()
    unequal = np.flatnonzero(lengths_B != num_words_B)
    if len(unequal):
        raise DataUnfit(
            f"{len(unequal)} row(s) have not one tag for each word, such as {max(lengths_B[unequal[0]], 0)} tag(s) for "
            f"{num_words_B[unequal[0]]} word(s)",
            required="as many tags as words in every row",
            where=f"column {label}, the label of a tagging task",
            remedy="state in the contract that their LENGTH is equal, so that such rows are quarantined",
        )
    positions_W = np.asarray(class_positions(classes, label, lists.flatten()), np.int16)
    word_W = np.arange(len(positions_W)) - np.repeat(np.cumsum(lengths_B) - lengths_B, lengths_B)
    is_read_W = word_W < np.repeat(is_first_BT.sum(axis=1), lengths_B)
    y_BT = np.full(is_first_BT.shape, IGNORED_LABEL, np.int16)
    y_BT[is_first_BT] = positions_W[is_read_W]
    return list_array(y_BT)


def code_tag_lists(classes: Classes, tags: pa.ListArray, num_words: int | None = None) -> np.ndarray:
    """Lists of tags as codes int64 (B, W), NO_TAG after the last one and for a null.

    Args:
        num_words: W; without it, the length of the longest list.
    """
    lengths_B = pc.list_value_length(tags).fill_null(0).to_numpy()
    num_words = int(lengths_B.max(initial=0)) if num_words is None else num_words
    names = class_names(tags.flatten())
    positions_W = pc.index_in(names, pa.array(classes, names.type)).fill_null(-1).to_numpy()
    positions_BW = np.full((len(tags), num_words), -1, np.int64)
    positions_BW[np.arange(num_words) < lengths_B[:, None]] = positions_W
    return code_tags(classes, positions_BW)


def name_tags(classes: Classes, codes_NT: np.ndarray, is_word_NT: np.ndarray) -> pa.ListArray:
    """The tags of codes as lists, with one for each word; the reverse of `code_tag_lists`."""
    codes = tag_codes(classes)
    order = np.argsort(codes)
    positions = order[np.searchsorted(codes[order], codes_NT[is_word_NT])]
    return list_values(pa.array(list(classes)).take(pa.array(positions)), is_word_NT)


def list_values(values: pa.Array, is_word_NT: np.ndarray) -> pa.ListArray:
    """Values of all words, row by row, as a list for each row."""
    return pa.ListArray.from_arrays(list_offsets(is_word_NT.sum(axis=1)), values)


def encode_sets(classes: Classes, label: str, values: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Sets of labels as lists of K float32: 1 for each label of the row, else 0. A set may be empty, but not null.

    Raises:
        DataUnfit: a row has no set, or a label that is not one of the training split.
    """
    sets = combine_chunks(values)
    if sets.null_count:
        raise DataUnfit(
            f"{sets.null_count} row(s) have no list of labels",
            required="a list in every row; it is empty where a row has no label",
            where=f"column {label}, the label of a multilabel task",
            remedy="make the column required in the contract, so that such rows are quarantined",
        )
    return list_array(mark_labels(classes, sets, label=label).astype(np.float32))


def mark_labels(classes: Classes, sets: pa.ListArray, *, label: str = "label") -> np.ndarray:
    """Sets of labels as int8 (B, K): 1 for each label of the row, else 0; a null element counts for nothing.

    Raises:
        DataUnfit: a label of the column `label` is not one of `classes`.
    """
    rows, names = pc.list_parent_indices(sets), class_names(sets.flatten())
    is_named = pc.is_valid(names)
    rows, names = rows.filter(is_named), names.filter(is_named)
    positions = pc.index_in(names, pa.array(classes, names.type))
    if positions.null_count:
        unknown = pc.unique(names.filter(pc.is_null(positions))).to_pylist()
        raise _unknown_labels_error(label, unknown, "list the labels to learn in `data.lists`, under `values`")
    matrix_BK = np.zeros((len(sets), len(classes)), np.int8)
    matrix_BK[rows.to_numpy(), positions.to_numpy()] = 1
    return matrix_BK


def name_labels(classes: Classes, labels_BK: np.ndarray) -> pa.ListArray:
    """The lists of labels whose entry in `labels_BK` is 1; the reverse of `mark_labels`."""
    names = pa.array(list(classes)).take(pa.array(np.nonzero(labels_BK > 0)[1]))
    return pa.ListArray.from_arrays(list_offsets((labels_BK > 0).sum(axis=1)), names)


def _unknown_labels_error(label: str, unknown: list[int | str], alternative: str) -> DataUnfit:
    return DataUnfit(
        f"labels {', '.join(map(str, unknown))} are in the data, but not in its training split",
        required="every label in the training split",
        where=f"column {label}",
        remedy=f"add rows of these classes, or {alternative}",
    )
