"""Scores of sets of labels agree with scikit-learn, and their intervals contain them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, hamming_loss

from bloomery.data_contracts.records.scores import SCORES, Score
from bloomery.models.evaluation import label_sets
from bloomery.models.evaluation.calibration import (
    as_decisions,
    calibration_bins,
    expected_calibration_error,
    predicted_decisions,
)
from bloomery.models.evaluation.label_sets import draw_set_scores, label_metrics
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import UndefinedScore, compute_metrics, compute_score

NAMES = [name for name, facts in SCORES.items() if facts.task == "multilabel"]


def make_predictions(num_rows: int = 300, noise: float = 0.7) -> tuple[np.ndarray, np.ndarray]:
    """Sets of four labels, one of them rare and one absent, and probabilities that are often right."""
    random = np.random.default_rng(0)
    truth = (random.random((num_rows, 4)) < [0.5, 0.3, 0.05, 0.0]).astype(np.int8)
    shares = 1 / (1 + np.exp(-(4 * truth - 2 + 2 * noise * random.normal(size=truth.shape))))
    return truth, shares


def test_scores_are_those_of_scikit_learn_over_the_labels_that_rows_have():
    truth, shares = make_predictions()
    labels, present = (shares >= 0.5).astype(int), [0, 1, 2]
    expected = {
        "micro_f1": f1_score(truth, labels, average="micro"),
        "label_macro_f1": f1_score(truth[:, present], labels[:, present], average="macro"),
        "mean_average_precision": average_precision_score(truth[:, present], shares[:, present], average="macro"),
        "subset_accuracy": accuracy_score(truth, labels),
        "hamming_loss": hamming_loss(truth, labels),
    }
    assert compute_metrics("multilabel", truth, shares) == pytest.approx(expected)
    assert [compute_score(Score(name=name), truth, shares) for name in expected] == pytest.approx([*expected.values()])


@pytest.mark.parametrize("name", NAMES)
def test_an_interval_contains_the_score_and_narrows_with_more_rows(name):
    widths = []
    for num_rows in (100, 1_600):
        truth, shares = make_predictions(num_rows)
        interval = score_interval(Score(name=name), truth, shares)
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
        assert interval.value == compute_score(Score(name=name), truth, shares)
        widths.append(interval.high - interval.low)
    assert widths[1] < 0.6 * widths[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_degradation_is_paired_and_equal_predictions_are_no_proof_of_equality(name):
    truth, shares = make_predictions()
    worse = np.where(np.arange(len(shares))[:, None] % 4 == 0, 1 - shares, shares)
    score = Score(name=name)
    equal, drop = (degradation_interval(score, truth, shares, after) for after in (shares, worse))
    assert equal.value == 0
    if not score.is_error:
        assert equal.low < 0 < equal.high < (0.15 if "average" in name else 0.05)  # the rare label has 15 rows
        assert drop.value == pytest.approx(compute_score(score, truth, shares) - compute_score(score, truth, worse))
    assert drop.low > 0


@pytest.mark.parametrize(("num_rows", "num_labels", "share"), [(1_500, 20, 0.05), (2_000, 100, 0.01)])
@pytest.mark.parametrize("name", ["micro_f1", "label_macro_f1", "mean_average_precision"])
def test_equal_predictions_of_many_labels_are_shown_to_be_equal(name, num_rows, num_labels, share):
    random = np.random.default_rng(0)
    truth = (random.random((num_rows, num_labels)) < share).astype(np.int8)
    shares = 1 / (1 + np.exp(-(9 * truth - 6 + 2 * random.normal(size=truth.shape))))
    equal = degradation_interval(Score(name=name), truth, shares, shares)
    assert 0 < equal.high < 0.01  # the limit of a drafted recipe


def test_intervals_of_a_sample_are_as_wide_as_those_of_all_rows(monkeypatch):
    score = Score(name="label_macro_f1")
    truth, shares = make_predictions(3_000)
    widths = {}
    for max_rows in (5_000, 1_000):
        monkeypatch.setattr(label_sets, "_MAX_ROWS", max_rows)
        low, high = np.quantile(draw_set_scores(score, truth, shares)[0], [0.025, 0.975])
        widths[max_rows] = high - low
    assert widths[1_000] == pytest.approx(widths[5_000], rel=0.3)
    monkeypatch.setattr(label_sets, "_draw_f1", lambda score, truth_NK, sides, rate: (truth_NK.shape, rate))
    assert draw_set_scores(score, truth[:1_999], shares[:1_999]) == ((1_000, 4), 1.999)


def test_weighted_average_precision_is_that_of_scikit_learn_for_equal_values_too():
    random = np.random.default_rng(0)
    is_true, values = random.random(200) < 0.2, random.integers(0, 20, 200) / 20
    weights = random.poisson(1.0, (200, 3)).astype(np.float32)
    expected = [average_precision_score(is_true, values, sample_weight=column) for column in weights.T]
    assert label_sets._weighted_average_precision(is_true, values, weights) == pytest.approx(expected, rel=1e-5)


def test_without_any_label_only_some_scores_exist():
    truth, shares = np.zeros((5, 3), np.int8), np.full((5, 3), 0.1)
    assert compute_metrics("multilabel", truth, shares) == {"subset_accuracy": 1.0, "hamming_loss": 0.0}
    with pytest.raises(UndefinedScore, match="no row has a label"):
        compute_score(Score(name="micro_f1"), truth, shares)


def test_each_label_has_recall_and_precision_or_none():
    truth = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    labels = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    first, never_predicted, absent = label_metrics(truth, labels)
    assert (first.num_rows, first.recall, first.precision) == (2, 0.5, 0.5)
    assert (never_predicted.num_rows, never_predicted.recall, never_predicted.precision) == (1, 0.0, None)
    assert (absent.num_rows, absent.recall, absent.precision) == (0, None, 0.0)


def test_calibration_counts_a_decision_for_each_label():
    truth, shares = np.array([[1, 0], [1, 1]]), np.array([[0.9, 0.2], [0.6, 0.4]])
    bins = calibration_bins(*as_decisions(truth, shares), num_bins=1)
    assert bins.counts.tolist() == [4]
    assert bins.accuracy.tolist() == [0.75]


def test_the_calibration_of_predicted_labels_is_not_hidden_by_easy_ones():
    truth, shares = np.zeros((100, 50), int), np.full((100, 50), 0.001)
    shares[:, 0], truth[:40, 0] = 0.9, 1
    bins = calibration_bins(*predicted_decisions(truth, shares))
    assert (bins.counts.sum(), expected_calibration_error(bins)) == (100, pytest.approx(0.5))
    assert expected_calibration_error(calibration_bins(*as_decisions(truth, shares))) < 0.02
    none = calibration_bins(*predicted_decisions(truth, np.full((100, 50), 0.1)))
    assert (none.counts.sum(), expected_calibration_error(none)) == (0, 0)
