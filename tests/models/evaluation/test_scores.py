"""Scores: equal to scikit-learn's, in their direction, and an error where they do not exist."""

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.scores import SCORES, Score
from bloomery.models.evaluation import scores
from bloomery.models.evaluation.scores import (
    UndefinedScore,
    compute_metrics,
    compute_score,
    require_defined,
    require_score,
)

RANDOM = np.random.default_rng(0)


def score_of(name: str, quantile: float | None = None) -> Score:
    return Score.model_validate({"name": name, "quantile": quantile})


def random_classes(num_rows: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes, of which the first is frequent, and probabilities that suit them more or less."""
    truth = np.minimum(RANDOM.geometric(0.6, num_rows) - 1, num_classes - 1)
    logits = RANDOM.normal(size=(num_rows, num_classes)) + 1.5 * np.eye(num_classes)[truth]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return truth, shares


def test_every_name_has_a_function():
    assert set(scores._FUNCTIONS) == set(SCORES)


def test_scores_of_classes_equal_those_of_scikit_learn():
    truth, shares = random_classes(400, 3)
    predicted = shares.argmax(axis=1)
    one_hot = np.eye(3, dtype=int)[truth]
    assert compute_metrics("classification", truth, shares) == pytest.approx(
        {
            "accuracy": sklearn_metrics.accuracy_score(truth, predicted),
            "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, predicted),
            "macro_f1": sklearn_metrics.f1_score(truth, predicted, average="macro"),
            "auc": sklearn_metrics.roc_auc_score(truth, shares, multi_class="ovr", average="macro"),
            "average_precision": sklearn_metrics.average_precision_score(one_hot, shares, average="macro"),
            "log_loss": sklearn_metrics.log_loss(truth, shares),
        }
    )


def test_scores_of_numbers_equal_those_of_scikit_learn():
    truth = RANDOM.normal(10, 3, 200)
    predicted = truth + RANDOM.normal(size=200)
    assert compute_metrics("regression", truth, predicted) == pytest.approx(
        {
            "rmse": sklearn_metrics.root_mean_squared_error(truth, predicted),
            "mae": sklearn_metrics.mean_absolute_error(truth, predicted),
            "r2": sklearn_metrics.r2_score(truth, predicted),
            "mape": sklearn_metrics.mean_absolute_percentage_error(truth, predicted),
        }
    )
    expected = sklearn_metrics.mean_pinball_loss(truth, predicted, alpha=0.9)
    assert compute_score(score_of("quantile_loss", 0.9), truth, predicted) == pytest.approx(expected)


def test_of_two_classes_the_rarer_one_is_ranked_by_average_precision():
    truth, shares = random_classes(300, 2)
    expected = sklearn_metrics.average_precision_score(truth == 1, shares[:, 1])
    average_precision = score_of("average_precision")
    assert (truth == 1).sum() < (truth == 0).sum()
    assert compute_score(average_precision, truth, shares) == pytest.approx(expected)
    assert compute_score(average_precision, 1 - truth, shares[:, ::-1]) == pytest.approx(expected)


def test_a_class_without_rows_does_not_count():
    truth, shares = random_classes(300, 2)
    wider = np.concatenate([shares, np.zeros((300, 1))], axis=1)
    narrow, wide = compute_metrics("classification", truth, shares), compute_metrics("classification", truth, wider)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc", "log_loss"):
        assert wide[name] == pytest.approx(narrow[name])


@pytest.mark.parametrize(
    ("name", "truth", "predictions", "reason"),
    [
        ("auc", np.zeros(4, int), np.full((4, 2), 0.5), "all rows are of one class"),
        ("average_precision", np.full(4, 2), np.full((4, 3), 1 / 3), "all rows are of one class"),
        ("mape", np.array([0.0, 1.0]), np.ones(2), "1 labels are 0"),
        ("r2", np.ones(3), np.ones(3), "all labels are equal"),
        ("rmse", np.empty(0), np.empty(0), "no rows"),
    ],
)
def test_a_score_that_does_not_exist_is_an_error_that_names_the_reason(name, truth, predictions, reason):
    with pytest.raises(UndefinedScore, match=reason):
        compute_score(score_of(name), truth, predictions)
    with pytest.raises(DataUnfit, match=reason) as failure:
        require_score(score_of(name), truth, predictions, "validation")
    assert "score" in failure.value.remedy
    assert "validation" in failure.value.where
    num_classes = predictions.shape[1] if predictions.ndim == 2 else 0
    with pytest.raises(DataUnfit, match=reason):  # before there are predictions
        require_defined(score_of(name), truth, num_classes, "test")
    task = SCORES[score_of(name).name].task
    assert name not in compute_metrics(task, truth, predictions)


def test_scores_that_always_exist_need_rows_alone():
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "log_loss"):
        require_defined(score_of(name), np.zeros(3, int), 2, "test")
    for name in ("auc", "average_precision"):
        require_defined(score_of(name), np.array([0, 0, 1]), 2, "test")
    for name in ("rmse", "mae", "r2", "mape"):
        require_defined(score_of(name), np.array([1.0, 2.0]), 0, "test")


def test_a_label_of_0_is_found_after_its_encoding():
    mean, deviation = 1000.3, 57.7
    decoded = mean + deviation * ((np.array([0.0, 900.0, 1100.0]) - mean) / deviation).astype(np.float32).astype(float)
    assert decoded[0] != 0
    with pytest.raises(DataUnfit, match="1 labels are 0"):
        require_defined(score_of("mape"), decoded, 0, "test")


def test_a_prediction_that_is_not_a_number_has_no_score():
    assert np.isnan(compute_score(score_of("rmse"), np.ones(2), np.array([1.0, np.nan])))
    assert np.isnan(compute_score(score_of("macro_f1"), np.zeros(2, int), np.full((2, 2), np.nan)))
    assert compute_metrics("regression", np.ones(2), np.array([1.0, np.inf])) == {}


def test_direction_and_quantile():
    assert score_of("macro_f1").is_better(0.9, 0.8)
    assert score_of("log_loss").is_better(0.1, 0.2)
    assert not score_of("rmse").is_better(1.0, float("nan"))
    with pytest.raises(ValueError, match="needs a quantile"):
        score_of("quantile_loss")
    with pytest.raises(ValueError, match="belongs to quantile_loss"):
        score_of("mae", 0.5)
