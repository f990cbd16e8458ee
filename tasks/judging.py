"""What a network's answers to a part of the data come to: over all rows, by class, and by the values of columns.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from data_contracts.layouts import Task
from data_contracts.records import Dataset, Interval
from models import metrics
from models.encoder import Encoder
from tasks.slices import neighbourly, slice_values, slices_of

if TYPE_CHECKING:
    from models.training.batches import Examples


class Truth(NamedTuple):
    """A part's keys, what is true (positions of classes int64, or figures float64), and an order for intervals."""

    key: np.ndarray
    truth: np.ndarray
    order: np.ndarray


def truth_of(encoder: Encoder, dataset: Dataset, part: Examples) -> Truth:
    from models.answers import meant

    if dataset.task == "classification":
        return Truth(part.key, part.y.numpy(), np.arange(len(part.key)))
    truth_N = meant(encoder, part.y.numpy()[:, None])
    return Truth(part.key, truth_N, neighbourly(dataset, encoder.features, part.key))


def score(task: Task, rows: Truth, given: np.ndarray, chosen: np.ndarray | slice = slice(None)) -> Interval:
    """Of the rows `chosen`, or of all. `given` are probabilities (N, K), or figures (N,)."""
    if task == "classification":
        return metrics.accuracy(given[chosen].argmax(axis=1) == rows.truth[chosen])
    order_N = rows.order[chosen]
    return metrics.rmse(rows.truth[order_N], given[order_N])


def of_classes(classes: Sequence[object], rows: Truth, shares_NK: np.ndarray) -> dict[str, list[Any]]:
    """A column of the table for each thing that is said of a class."""
    told = metrics.per_class(metrics.confusion(rows.truth, shares_NK.argmax(axis=1), len(classes)))
    return {
        "class": [str(name) for name in classes],
        "rows": [one.num_rows for one in told],
        "recall": [one.recall for one in told],
        "precision": [one.precision for one in told],
    }


def of_slices(dataset: Dataset, columns: Sequence[str], rows: Truth, given: np.ndarray) -> dict[str, list[Any]]:
    """A column of the table for each thing that is said of the rows with one value of one of `columns`."""
    values = slice_values(dataset, rows.key, columns)
    found = []
    for column in columns:
        for value, is_in in slices_of(values[column]):
            if is_in.any():
                chosen = is_in if dataset.task == "classification" else is_in[rows.order]
                found.append((column, value, int(is_in.sum()), score(dataset.task, rows, given, chosen)))
    return {
        "column": [column for column, *_ in found],
        "value": [value for _, value, *_ in found],
        "rows": [num for _, _, num, _ in found],
        "score": [told.value for *_, told in found],
        "low": [told.low for *_, told in found],
        "high": [told.high for *_, told in found],
    }
