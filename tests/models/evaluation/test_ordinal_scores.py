"""Scores of ordered classes, against scikit-learn, with intervals and degradations."""

from __future__ import annotations

import numpy as np
import pytest

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.scores import Score
from bloomery.models.evaluation.ordinal_scores import draw_kappas, quadratic_kappa
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import compute_metrics, compute_score, require_defined

KAPPA, RANK_MAE = Score(name="quadratic_kappa"), Score(name="rank_mae")


def draw_ranks(num_rows: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ranks from 0 to 4, and the probabilities of a model that is often wrong by one."""
    random = np.random.default_rng(seed)
    latent = random.normal(size=num_rows)
    truth = np.digitize(latent, [-1.2, -0.4, 0.4, 1.2])
    seen = latent + noise * random.normal(size=num_rows)
    logits = -np.square(np.arange(5) - 2 - 1.25 * seen[:, None])
    return truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_kappa_and_distance_are_those_of_scikit_learn():
    from sklearn.metrics import cohen_kappa_score, mean_absolute_error

    truth, shares = draw_ranks(400, 0.5)
    predicted = shares.argmax(axis=1)
    assert quadratic_kappa(truth, predicted) == pytest.approx(cohen_kappa_score(truth, predicted, weights="quadratic"))
    assert compute_score(RANK_MAE, truth, shares) == pytest.approx(mean_absolute_error(truth, predicted))
    metrics = compute_metrics("ordinal", truth, shares)
    assert {"quadratic_kappa", "rank_mae", "accuracy", "macro_f1", "log_loss"} <= set(metrics)
    assert "quadratic_kappa" not in compute_metrics("classification", truth, shares)


@pytest.mark.parametrize("score", [KAPPA, RANK_MAE], ids=lambda score: score.name)
def test_intervals_enclose_the_score_and_show_a_worse_model(score: Score):
    truth, before = draw_ranks(500, 0.2)
    _, after = draw_ranks(500, 1.5)
    interval = score_interval(score, truth, before)
    assert interval.value == pytest.approx(compute_score(score, truth, before))
    assert interval.low < interval.value < interval.high
    rise, gain = degradation_interval(score, truth, before, after), degradation_interval(score, truth, after, before)
    assert 0 < rise.low < rise.value < rise.high
    assert gain.high < 0
    few = score_interval(score, truth[:50], before[:50])
    assert few.high - few.low > 1.5 * (interval.high - interval.low)


def test_an_interval_covers_the_kappa_of_many_rows_in_most_samples():
    truth, shares = draw_ranks(200_000, 0.6)
    expected = compute_score(KAPPA, truth, shares)
    hits = 0
    for number in range(100):
        rows = slice(200 * number, 200 * (number + 1))
        interval = score_interval(KAPPA, truth[rows], shares[rows])
        hits += interval.low <= expected <= interval.high
    assert hits >= 88


def test_equal_predictions_of_few_rows_are_no_proof_of_equality():
    truth, shares = draw_ranks(40, 0.2)
    drop = degradation_interval(KAPPA, truth, shares, shares)
    assert drop.value == 0
    assert drop.low < 0 < drop.high


def test_draws_without_any_variation_are_left_out():
    draws = draw_kappas(np.array([1, 1, 2]), np.array([1, 1, 2]), np.array([1, 1, 2]))
    assert np.isfinite(draws).all()
    assert 0 < draws.shape[1] <= 1_000


def test_kappa_does_not_exist_where_all_rows_are_of_one_class():
    with pytest.raises(DataUnfit, match="all rows are of one class") as failure:
        require_defined(KAPPA, np.ones(5, np.int64), 3, "test")
    assert "rank_mae" in failure.value.remedy
    assert "quadratic_kappa" not in compute_metrics("ordinal", np.ones(5, np.int64), np.eye(3)[[1, 1, 2, 1, 1]])
