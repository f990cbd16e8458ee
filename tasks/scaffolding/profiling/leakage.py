"""Finds columns that give the label away: copies, roundings and sums, which are seldom known when a model predicts.

At most `_MAX_ROWS` rows are compared, evenly spaced. Nothing is removed: `init` reports what it finds, and a person
decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.validation.casting import cast_column
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.ingest.column_changes import mark_missing
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.profiling.source_rows import ROWS_FILE

_MAX_ROWS = 10_000
_MIN_ROWS = 50  # with fewer, chance alone may order a column like the label
_MAX_COMPARED = 1_000  # columns that are compared with the label one by one
_MAX_COLUMNS = 300  # columns that may add up to the label
_MIN_DISTINCT = 10  # values that are ordered like the label; with fewer, each needs `_MIN_ROWS_PER_VALUE` rows
_MIN_ROWS_PER_VALUE = 20
_MIN_ROWS_PER_CLASS = 10  # rarer classes are no evidence
_MIN_RANK_CORRELATION = 0.9995
_MAX_TERMS = 12  # of a sum that a person can recognize
_MAX_RESIDUAL_SHARE = 1e-6  # of the label's standard deviation, beyond rounding
_MAX_DECIMALS = 4  # of a label that was rounded
_ROUNDING_SLACK = 1.1  # least squares do not minimize the largest residual
_ROUNDING_SHARE = 0.02  # rounding explains a residual only if the label varies much more


class Leak(NamedTuple):
    """Columns that give the label away, and how, as a clause with {columns} and {label}."""

    columns: tuple[str, ...]
    clause: str
    label: str

    def describe(self, names: dict[str, str]) -> str:
        """Returns a sentence, by the contract's names."""
        listed = " and ".join(names[name] for name in self.columns)
        clause = self.clause.format(columns=listed, label=names[self.label])
        them = "it" if len(self.columns) == 1 else "them"
        return f"{clause}; leave {them} out of the inputs if not known before {names[self.label]}"


class _Rows(NamedTuple):
    """A sample: the numbers of each column, NaN for missing, and the codes of the others' texts, -1 for missing.

    `class_numbers` are the classes of a classification that are numbers.
    """

    numbers: dict[str, np.ndarray]
    texts: dict[str, np.ndarray]
    class_numbers: np.ndarray


def find_leaks(
    profile: SourceProfile, scratch: Path, columns: Sequence[str], label: str, *, is_regression: bool
) -> tuple[Leak, ...]:
    """Returns the leaks of `label` among the `columns`, of the profiled rows in `scratch`."""
    names = set(columns)
    profiles = [column for column in profile.columns if column.name in names and column.logical_type != "array"]
    profiles = profiles[:_MAX_COMPARED]
    target = next(column for column in profile.columns if column.name == label)
    rows = _read_sample(profile, scratch, profiles, target, is_regression=is_regression)
    if is_regression:
        return tuple(_regression_leaks(rows, label))
    class_leaks = tuple(_class_leaks(rows, label))
    if target.logical_type != "integer" or class_leaks:
        return class_leaks
    return tuple(_computed_leaks(rows.numbers, rows.class_numbers, label))


def _regression_leaks(rows: _Rows, label: str) -> Iterator[Leak]:
    target = rows.numbers[label]
    features = {name: values for name, values in rows.numbers.items() if name != label}
    copies = []
    for name, values in features.items():
        is_known = np.isfinite(values) & np.isfinite(target)
        if is_known.sum() >= _MIN_ROWS and (clause := _describe_order(values[is_known], target[is_known])):
            copies.append(name)
            yield Leak((name,), clause, label)
    remaining = {name: values for name, values in features.items() if name not in copies}
    yield from _computed_leaks(remaining, target, label)


def _describe_order(values: np.ndarray, target: np.ndarray) -> str:
    """Returns how the values follow the target, in either direction; empty if they do not."""
    distinct, counts = np.unique(values, return_counts=True)
    if len(distinct) < 2 or (len(distinct) < _MIN_DISTINCT and counts.min() < _MIN_ROWS_PER_VALUE):
        return ""
    if np.array_equal(values, target):
        return "{columns} is equal to {label}"
    for direction in (1, -1):
        if _is_ordered(values, direction * target):
            order = "the order of" if direction == 1 else "the reverse order of"
            is_close = direction == 1 and np.abs(values - target).max() <= 0.5
            return "{columns} is {label}, rounded" if is_close else f"{{columns}} has {order} {{label}} in every row"
    if len(distinct) >= _MIN_DISTINCT and len(values) >= 2 * _MIN_ROWS:
        from scipy.stats import spearmanr

        correlation = float(spearmanr(values, target).statistic)
        if abs(correlation) >= _MIN_RANK_CORRELATION:
            return f"{{columns}} has nearly the order of {{label}} (rank correlation {correlation:.4f})"
    return ""


def _is_ordered(values: np.ndarray, target: np.ndarray) -> bool:
    """Whether no pair of rows has a larger value, but a smaller target. Ties, as rounding makes them, do not count."""
    order = np.lexsort((target, values))
    sorted_values, sorted_target = values[order], target[order]
    starts = np.flatnonzero(np.diff(sorted_values, prepend=np.nan) != 0)
    lower, upper = np.minimum.reduceat(sorted_target, starts), np.maximum.reduceat(sorted_target, starts)
    return bool((lower[1:] >= upper[:-1]).all())


def _computed_leaks(features: dict[str, np.ndarray], target: np.ndarray, label: str) -> Iterator[Leak]:
    """Yields the sum or the product that is equal to the label in every row, up to rounding, if there is one."""
    names, is_known = _select_complete(features, target)
    if not names:
        return
    matrix, known_target = np.column_stack([features[name][is_known] for name in names]), target[is_known]
    for terms, weights in _candidate_terms(matrix, known_target, _rounding(known_target)):
        yield Leak(tuple(names[term] for term in terms), _describe_sum(weights), label)
        return
    is_positive = (matrix > 0).all(axis=0)
    if not is_positive.any() or (known_target <= 0).any():
        return
    logarithms, relative_rounding = np.log(matrix[:, is_positive]), _rounding(known_target) / known_target.min()
    for terms, weights in _candidate_terms(logarithms, np.log(known_target), relative_rounding):
        factors = np.flatnonzero(is_positive)[terms]
        if _is_product(matrix[:, factors], np.round(weights[:-1]), known_target):
            yield Leak(tuple(names[factor] for factor in factors), _describe_product(weights), label)
        return


def _select_complete(features: dict[str, np.ndarray], target: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Returns columns that vary, the most complete first, and the rows in which they and the target are known.

    A column is left out if too few rows would be left to compare so many columns.
    """
    is_known = np.isfinite(target)
    names: list[str] = []
    shares = {name: np.isfinite(values).mean() for name, values in features.items()}
    for name in sorted(features, key=lambda name: -shares[name])[:_MAX_COLUMNS]:
        is_known_here = is_known & np.isfinite(features[name])
        if is_known_here.sum() >= max(_MIN_ROWS, 3 * (len(names) + 1), is_known.sum() / 2):
            is_known = is_known_here
            names.append(name)
    varying = [name for name in names if features[name][is_known].std() > 0]
    return (varying if np.ptp(target[is_known]) > 0 else []), is_known


def _candidate_terms(
    matrix: np.ndarray, target: np.ndarray, rounding: float
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the fewest columns that add up to the target, with their weights, if there are any."""
    weights = _solve(matrix, target, rounding)
    if weights is None:
        return
    by_share = np.argsort(-np.abs(weights[:-1]) * matrix.std(axis=0), kind="stable")
    for num_terms in range(1, min(_MAX_TERMS, matrix.shape[1]) + 1):
        terms = np.sort(by_share[:num_terms])
        weights = _solve(matrix[:, terms], target, rounding)
        if weights is not None:
            yield terms, weights
            return


def _solve(matrix: np.ndarray, target: np.ndarray, rounding: float) -> np.ndarray | None:
    """Returns the weights and the constant by which the columns add up to the target; None if they do not."""
    center, scale = matrix.mean(axis=0), matrix.std(axis=0)
    design = np.column_stack([(matrix - center) / scale, np.ones(len(matrix))])
    solution, *_ = np.linalg.lstsq(design, target, rcond=None)
    residual = np.abs(design @ solution - target).max()
    if residual > rounding * _ROUNDING_SLACK + _MAX_RESIDUAL_SHARE * target.std():
        return None
    weights = solution[:-1] / scale
    return np.append(weights, solution[-1] - weights @ center)


def _rounding(target: np.ndarray) -> float:
    """Returns by how much rounding to some decimals changes the label, if that is little beside its spread."""
    places = range(_MAX_DECIMALS + 1)
    unit = next((10.0**-num for num in places if np.allclose(np.round(target, num), target, rtol=0, atol=1e-9)), 0.0)
    return unit / 2 if unit / 2 <= _ROUNDING_SHARE * target.std() else 0.0


def _is_product(factors: np.ndarray, powers: np.ndarray, target: np.ndarray) -> bool:
    """Whether the factors with powers of 1 and -1, times a constant, are the target up to rounding."""
    products = np.prod(factors**powers, axis=1)
    constant = np.median(target / products)
    limits = _rounding(target) * _ROUNDING_SLACK + _MAX_RESIDUAL_SHARE * np.abs(target)
    return bool((np.abs(powers) == 1).all() and (np.abs(constant * products - target) <= limits).all())


def _describe_sum(weights: np.ndarray) -> str:
    if np.allclose(weights[:-1], 1, atol=5e-3) and abs(weights[-1]) < 0.5:
        return "{label} is the sum of {columns}" if len(weights) > 2 else "{label} is equal to {columns}"
    return "{label} can be computed from {columns}" + (", as a weighted sum of them" if len(weights) > 2 else "")


def _describe_product(weights: np.ndarray) -> str:
    is_product = (weights[:-1] > 0).all()
    return f"{{label}} is {'the product' if is_product else 'a quotient'} of {{columns}}"


def _class_leaks(rows: _Rows, label: str) -> Iterator[Leak]:
    classes = rows.texts[label]
    for name, values in {**rows.numbers, **rows.texts}.items():
        if name == label:
            continue
        is_known = np.isfinite(values) if values.dtype.kind == "f" else values >= 0
        is_known &= classes >= 0
        clause = _describe_classes(values[is_known], classes[is_known]) if is_known.sum() >= _MIN_ROWS else ""
        if clause or (clause := _describe_missing(~is_known & (classes >= 0), classes)):
            yield Leak((name,), clause, label)


def _describe_missing(is_missing: np.ndarray, classes: np.ndarray) -> str:
    """Returns how missing values determine the class, as a cause of death does; empty if they do not."""
    known_classes = classes[classes >= 0]
    if not _describe_classes(is_missing[classes >= 0].astype(np.int64), known_classes):
        return ""
    return "{columns} has a value in every row of some classes of {label}, and in no row of the others"


def _describe_classes(values: np.ndarray, classes: np.ndarray) -> str:
    """Returns how a column determines the class, or is determined by it; empty if it does not."""
    class_names, class_counts = np.unique(classes, return_counts=True)
    is_common = np.isin(classes, class_names[class_counts >= _MIN_ROWS_PER_CLASS])
    values, classes = values[is_common], classes[is_common]
    distinct, codes = np.unique(values, return_inverse=True)
    class_names, class_codes = np.unique(classes, return_inverse=True)
    if len(distinct) < 2 or len(class_names) < 2:
        return ""
    pairs = np.unique(codes.astype(np.int64) * len(class_names) + class_codes)
    num_pairs = len(pairs)
    if num_pairs == len(class_names):
        return "every class of {label} has one value of {columns}, and no other"
    value_counts = np.bincount(codes)
    if num_pairs == len(distinct) and value_counts[codes].mean() >= _MIN_ROWS_PER_VALUE:
        return "every value of {columns} has one class of {label}, and no other"
    is_ordered = values.dtype.kind == "f" and num_pairs == len(distinct)
    runs = 1 + int(np.count_nonzero(np.diff(class_codes[np.argsort(codes, kind="stable")]))) if is_ordered else 0
    return "limits of {columns} alone separate the classes of {label}" if runs == len(class_names) else ""


def _read_sample(
    profile: SourceProfile,
    scratch: Path,
    columns: Sequence[ColumnProfile],
    target: ColumnProfile,
    *,
    is_regression: bool,
) -> _Rows:
    step = -(-profile.num_rows // _MAX_ROWS)
    profiles = {column.name: column for column in (*columns, target)}
    pieces: dict[str, list[pa.Array]] = {name: [] for name in profiles}
    start = 0
    for batch in read_batches(scratch / ROWS_FILE, list(profiles)):
        rows = pa.array(np.arange(-start % step, batch.num_rows, step))
        start += batch.num_rows
        for name, column in profiles.items():
            is_number = column.logical_type in ("integer", "number") and (column is not target or is_regression)
            values = batch[name].take(rows)
            if pa.types.is_string(values.type) and column.missing:
                values = mark_missing(values, column.missing)
            pieces[name].append(cast_column(values, pa.float64())[0] if is_number else values.cast(pa.string()))
    numbers, texts, class_numbers = {}, {}, np.zeros(0)
    for name, arrays in pieces.items():
        array = pa.chunked_array(arrays).combine_chunks()
        if pa.types.is_floating(array.type):
            numbers[name] = array.to_numpy(zero_copy_only=False)
        else:
            texts[name] = array.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
        if name == target.name and not is_regression:
            class_numbers = cast_column(array, pa.float64())[0].to_numpy(zero_copy_only=False)
    return _Rows(numbers, texts, class_numbers)
