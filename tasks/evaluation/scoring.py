"""What a network's answers to a part of the data come to: over all rows, by class, and by the values of columns.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bloomery.data_contracts.records.records import Dataset, Interval
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.models.evaluation import metrics
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.evaluation.slices import bootstrap_order, find_slices, read_slice_values

if TYPE_CHECKING:
    from bloomery.models.training.data.batches import Examples


class GroundTruth(NamedTuple):
    """A part's keys, what is true (positions of classes int64, or figures float64), and an order for intervals."""

    key: np.ndarray
    truth: np.ndarray
    order: np.ndarray


def build_ground_truth(encoder: Encoder, dataset: Dataset, part: Examples) -> GroundTruth:
    from bloomery.models.inference.outputs import predictions_from

    if dataset.task == "classification":
        return GroundTruth(part.key, part.y.numpy(), np.arange(len(part.key)))
    truth_N = predictions_from(encoder, part.y.numpy()[:, None])
    return GroundTruth(part.key, truth_N, bootstrap_order(dataset, encoder.features, part.key))


def score_rows(task: Task, rows: GroundTruth, given: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> Interval:
    """Of the rows `chosen`, or of all. `given` are probabilities (N, K), or figures (N,)."""
    if task == "classification":
        return metrics.accuracy(given[chosen].argmax(axis=1) == rows.truth[chosen])
    order_N = rows.order[chosen]
    return metrics.rmse(rows.truth[order_N], given[order_N])


def measure_degradation(
    task: Task, rows: GroundTruth, before: np.ndarray, after: np.ndarray, chosen: np.ndarray | slice = slice(None)
) -> Interval:
    """How much worse `after` is than `before` on the same rows: the drop of accuracy, or the share by which RMSE rises.

    Of the rows `chosen`, or of all. Both are positions of classes, or figures (N,).
    """
    if task == "classification":
        truth_N = rows.truth[chosen]
        return metrics.accuracy_drop(before[chosen] == truth_N, after[chosen] == truth_N)
    order_N = rows.order[chosen]
    return metrics.rmse_rise(rows.truth[order_N], before[order_N], after[order_N])


def point_predictions(task: Task, given: np.ndarray) -> np.ndarray:
    """Positions of classes (N,) of probabilities (N, K); figures (N,) as they are."""
    return given.argmax(axis=1) if task == "classification" else given


class SliceDegradation(NamedTuple):
    """The rows with one value of a column, and how much worse one model is there than another."""

    column: str
    value: str
    num_rows: int
    degradation: Interval

    def __str__(self) -> str:
        return f"{self.column}={self.value}"


def degradation_by_slice(
    dataset: Dataset, columns: Sequence[str], rows: GroundTruth, before: np.ndarray, after: np.ndarray
) -> list[SliceDegradation]:
    """For each value of each of `columns` that the rows have; arguments as of `measure_degradation`."""
    return [
        SliceDegradation(column, value, num, measure_degradation(dataset.task, rows, before, after, chosen))
        for column, value, num, chosen in _slices(dataset, columns, rows)
    ]


def degradation_by_class(
    dataset: Dataset, rows: GroundTruth, before: np.ndarray, after: np.ndarray
) -> list[SliceDegradation]:
    """For the rows of each class, as far as there are any; arguments as of `measure_degradation`."""
    found = [(str(name), rows.truth == position) for position, name in enumerate(dataset.classes)]
    return [
        SliceDegradation("class", name, int(is_in.sum()), measure_degradation(dataset.task, rows, before, after, is_in))
        for name, is_in in found
        if is_in.any()
    ]


def class_table(classes: Sequence[object], rows: GroundTruth, shares_NK: np.ndarray) -> dict[str, list[Any]]:
    """A column of the table for each thing that is said of a class."""
    told = metrics.class_metrics(metrics.confusion_matrix(rows.truth, shares_NK.argmax(axis=1), len(classes)))
    return {
        "class": [str(name) for name in classes],
        "rows": [one.num_rows for one in told],
        "recall": [one.recall for one in told],
        "precision": [one.precision for one in told],
    }


def slice_table(dataset: Dataset, columns: Sequence[str], rows: GroundTruth, given: np.ndarray) -> dict[str, list[Any]]:
    """A column of the table for each thing that is said of the rows with one value of one of `columns`."""
    found = [
        (column, value, num, score_rows(dataset.task, rows, given, chosen))
        for column, value, num, chosen in _slices(dataset, columns, rows)
    ]
    return {
        "column": [column for column, *_ in found],
        "value": [value for _, value, *_ in found],
        "rows": [num for _, _, num, _ in found],
        "score": [told.value for *_, told in found],
        "low": [told.low for *_, told in found],
        "high": [told.high for *_, told in found],
    }


def _slices(dataset: Dataset, columns: Sequence[str], rows: GroundTruth) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """Column, value, number of rows, and which they are (N,): of a regression in the order for intervals."""
    values = read_slice_values(dataset, rows.key, columns)
    for column in columns:
        for value, is_in in find_slices(values[column]):
            if is_in.any():
                yield column, value, int(is_in.sum()), is_in if dataset.task == "classification" else is_in[rows.order]
