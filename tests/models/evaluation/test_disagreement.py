"""Bounds on the effect of compression by the rows whose prediction changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.models.evaluation.disagreement import ChangedRows, bound_accuracy_drop, bound_error_rise
from bloomery.models.evaluation.metrics import proportion


def test_unchanged_rows_of_all_splits_lower_the_bound() -> None:
    few = bound_accuracy_drop(ChangedRows(0, 0), ChangedRows(0, 60))
    many = bound_accuracy_drop(ChangedRows(0, 540), ChangedRows(0, 60))
    assert few == pytest.approx(0.060, abs=1e-3)
    assert many == pytest.approx(0.0064, abs=1e-4)


def test_training_rows_count_only_if_no_fewer_of_them_change() -> None:
    """A network that knows its training rows by heart changes hardly any of them."""
    held_out = ChangedRows(8, 100)
    assert bound_accuracy_drop(ChangedRows(0, 10_000), held_out) == proportion(8, 100).high
    assert bound_accuracy_drop(ChangedRows(800, 10_000), held_out) == proportion(808, 10_100).high


@settings(deadline=None)
@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_the_bound_is_never_below_the_drop_of_the_held_out_rows(
    num_rows: int, share_right: float, share_changed: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    is_right, is_changed = random.random(num_rows) < share_right, random.random(num_rows) < share_changed
    drop = float((is_right & is_changed).mean())  # at worst, each changed row becomes wrong
    assert bound_accuracy_drop(ChangedRows(0, 0), ChangedRows(int(is_changed.sum()), num_rows)) >= drop


def test_the_error_of_a_regression_rises_by_no_more_than_the_change_of_its_predictions() -> None:
    random = np.random.default_rng(0)
    truth, changes = random.normal(size=2_000), 0.05 * random.normal(size=2_000)
    before = truth + random.normal(size=2_000)
    error = float(np.sqrt(np.mean((before - truth) ** 2)))
    rise = float(np.sqrt(np.mean((before + changes - truth) ** 2))) / error - 1
    bound = bound_error_rise(np.empty(0), changes, error)
    assert rise < 0.05 / error < bound < 0.06 / error
    assert bound_error_rise(0.001 * changes, changes, error) == bound  # training rows that hardly change
    assert bound_error_rise(np.empty(0), np.zeros(10), error) == 0.0
