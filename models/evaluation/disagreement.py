"""Bounds the effect of compression by how far a candidate's predictions differ from those of fp32.

A prediction that stays the same cannot become worse, so rows count whether or not their label is known.

Shapes: N rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.metrics import proportion, rmse

_SIGNIFICANCE = 0.05


class ChangedRows(NamedTuple):
    """The number of rows, and how many of them a candidate predicts as another class than fp32 does."""

    num_changed: int
    num_rows: int


def bound_accuracy_drop(training: ChangedRows, held_out: ChangedRows) -> float:
    """The upper 95% limit of the share of rows that get another class, which no drop of accuracy exceeds.

    All rows count together. A network is surer of the rows that it was trained on, so that fewer of them change; where
    this is demonstrable, the rows held out count alone. One of the two may have no rows.
    """
    counts = ChangedRows(training.num_changed + held_out.num_changed, training.num_rows + held_out.num_rows)
    if changes_more(held_out, training):
        counts = held_out
    return proportion(counts.num_changed, counts.num_rows).high


def changes_more(left: ChangedRows, right: ChangedRows) -> bool:
    """Whether a demonstrably larger share of `left` changes, by Fisher's exact test; False if one has no rows."""
    from scipy.stats import fisher_exact

    if not left.num_rows or not right.num_rows:
        return False
    table = [[counts.num_changed, counts.num_rows - counts.num_changed] for counts in (left, right)]
    return bool(fisher_exact(table, alternative="greater").pvalue < _SIGNIFICANCE)


def bound_error_rise(training_N: np.ndarray, held_out_N: np.ndarray, error: float) -> float:
    """The upper 95% limit of the root mean square change as a share of `error`, which no rise of RMSE exceeds.

    The RMSE of a sum is at most the sum of the RMSEs. `training_N` and `held_out_N` are the changes of predictions;
    where those of rows held out are demonstrably larger, they count alone. `error` is the RMSE of fp32.
    """
    changes_N = np.concatenate([training_N, held_out_N])
    if changes_further(held_out_N, training_N):
        changes_N = held_out_N
    return _root_mean_square(changes_N).high / max(error, np.finfo(np.float64).tiny)


def changes_further(left_N: np.ndarray, right_N: np.ndarray) -> bool:
    """Whether the changes in `left_N` are demonstrably larger than those in `right_N`; False if one has no rows."""
    if not len(left_N) or not len(right_N):
        return False
    return _root_mean_square(left_N).low > _root_mean_square(right_N).high


def _root_mean_square(changes_N: np.ndarray) -> Interval:
    """The root mean square of changes, with its 95% interval."""
    return rmse(np.zeros_like(changes_N), changes_N)
