"""Scores of several outputs: means over the outputs, with intervals that draw all outputs of a row together."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.scores import MEAN_RMSE, RMSE, Score
from bloomery.models.evaluation.output_scores import (
    mean_output_score,
    output_degradation_interval,
    output_score_interval,
)
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import compute_metrics, compute_score, require_defined

SCORES = [MEAN_RMSE, Score(name="mean_mae"), Score(name="mean_r2")]


def draw_outputs(num_rows: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Three outputs with missing labels, and the predictions of two models of which the second is worse."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(num_rows, 3))
    noise = random.normal(size=(num_rows, 3)) * [0.2, 0.5, 0.8]
    missing = random.random((num_rows, 3)) < [0.0, 0.3, 0.6]
    return np.where(missing, np.nan, truth), truth + noise, truth + 1.5 * noise


def test_scores_are_the_means_of_the_scores_of_rows_with_a_label():
    from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error

    truth, predicted, _ = draw_outputs()
    metrics = compute_metrics("multioutput", truth, predicted)
    for name, function in (
        ("mean_rmse", root_mean_squared_error),
        ("mean_mae", mean_absolute_error),
        ("mean_r2", r2_score),
    ):
        known = [~np.isnan(labels) for labels in truth.T]
        scores = [function(truth[rows, k], predicted[rows, k]) for k, rows in enumerate(known)]
        assert metrics[name] == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("score", SCORES, ids=lambda score: score.name)
def test_intervals_enclose_the_score_and_show_a_worse_model(score: Score):
    truth, before, after = draw_outputs()
    interval = score_interval(score, truth, before)
    assert interval.value == pytest.approx(compute_score(score, truth, before))
    assert interval.low < interval.value < interval.high
    rise, gain = degradation_interval(score, truth, before, after), degradation_interval(score, truth, after, before)
    assert 0 < rise.low < rise.value < rise.high
    assert gain.high < 0
    assert degradation_interval(score, truth, before, before).value == 0


def test_a_single_output_has_the_interval_of_a_regression():
    truth, before, after = (values[:, :1] for values in draw_outputs())
    interval, expected = score_interval(MEAN_RMSE, truth, before), score_interval(RMSE, truth[:, 0], before[:, 0])
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), rel=1e-3)
    rise, expected = (
        degradation_interval(MEAN_RMSE, truth, before, after),
        degradation_interval(RMSE, truth[:, 0], before[:, 0], after[:, 0]),
    )
    assert (rise.low, rise.value, rise.high) == pytest.approx((expected.low, expected.value, expected.high), rel=1e-3)


def test_a_score_does_not_exist_where_an_output_has_no_label():
    truth, predicted, _ = draw_outputs(20)
    truth[:, 1] = np.nan
    with pytest.raises(DataUnfit, match="an output has no label in any row"):
        require_defined(MEAN_RMSE, truth, 0, "test")
    assert compute_metrics("multioutput", truth, predicted) == {}
    constant = np.zeros((5, 2))
    with pytest.raises(DataUnfit, match="no variance") as failure:
        require_defined(Score(name="mean_r2"), constant, 0, "test")
    assert "mean_rmse" in failure.value.remedy


@pytest.mark.parametrize("name", [score.name for score in SCORES])
def test_an_output_without_a_label_does_not_count(name: str):
    truth, before, after = draw_outputs()
    truth[:, 1] = np.nan
    kept = [0, 2]
    expected = mean_output_score(name, truth[:, kept], before[:, kept])
    assert mean_output_score(name, truth, before) == pytest.approx(expected)
    interval = output_score_interval(name, truth, before)
    assert interval == output_score_interval(name, truth[:, kept], before[:, kept])
    rise = output_degradation_interval(name, truth, before, after)
    assert rise == output_degradation_interval(name, truth[:, kept], before[:, kept], after[:, kept])


def test_draws_without_a_rare_label_do_not_lower_the_error():
    truth = np.full((40, 2), np.nan)
    truth[:, 0], truth[3, 1] = 0.0, 0.0
    interval = output_score_interval("mean_rmse", truth, np.ones((40, 2)))
    assert (interval.low, interval.high) == pytest.approx((1.0, 1.0))
    single = output_score_interval("mean_rmse", np.where(np.arange(40)[:, None] == 3, truth, np.nan), np.ones((40, 2)))
    assert (single.low, single.value, single.high) == pytest.approx((1.0, 1.0, 1.0))
