"""Intervals of scores and degradations: around the value, valid, wide for few rows, and as before for the defaults."""

import tracemalloc

import numpy as np
import pytest

from bloomery.data_contracts.records.scores import ACCURACY, RMSE, SCORES, Score
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import compute_score

CLASS_SCORES = [Score(name=name) for name, facts in SCORES.items() if facts.task == "classification"]
NUMBER_SCORES = [
    Score(name=name, quantile=0.8 if name == "quantile_loss" else None)
    for name, facts in SCORES.items()
    if facts.task == "regression"
]


def draw_classes(seed: int, num_rows: int, signal: float = 1.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes, and the probabilities of two models of which the second is worse."""
    random = np.random.default_rng(seed)
    truth = random.choice(3, num_rows, p=[0.7, 0.2, 0.1])
    noise = random.normal(size=(num_rows, 3))
    logits = [strength * np.eye(3)[truth] + noise for strength in (signal, signal - 0.8)]
    before, after = (np.exp(values) / np.exp(values).sum(axis=1, keepdims=True) for values in logits)
    return truth, before, after


def draw_numbers(seed: int, num_rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.normal(20, 3, num_rows)
    return truth, truth + random.normal(size=num_rows), truth + 1.5 * random.normal(size=num_rows)


@pytest.mark.parametrize("score", [*CLASS_SCORES, *NUMBER_SCORES], ids=lambda score: score.name)
def test_intervals_enclose_their_value_and_show_the_worse_model(score):
    draw = draw_classes if score.facts.task == "classification" else draw_numbers
    truth, before, after = draw(1, 500)
    interval = score_interval(score, truth, before)
    assert interval.value == pytest.approx(compute_score(score, truth, before))
    assert interval.low < interval.value < interval.high
    drop, gain = degradation_interval(score, truth, before, after), degradation_interval(score, truth, after, before)
    assert 0 < drop.low < drop.value < drop.high
    assert gain.low < gain.value < gain.high < 0
    change = compute_score(score, truth, after) - compute_score(score, truth, before)
    assert drop.value == pytest.approx(change / interval.value if score.is_error else -change)


def test_the_default_scores_have_their_own_intervals():
    truth, before, after = draw_classes(2, 200)
    assert score_interval(ACCURACY, truth, before) == metrics.accuracy(before.argmax(axis=1) == truth)
    correct = [values.argmax(axis=1) == truth for values in (before, after)]
    assert degradation_interval(ACCURACY, truth, before, after) == metrics.accuracy_drop(*correct)
    numbers = draw_numbers(2, 200)
    assert degradation_interval(RMSE, *numbers) == metrics.rmse_rise(*numbers)


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1", "auc", "average_precision"])
def test_few_equal_rows_are_no_proof_of_equality(name):
    score = Score(name=name)
    highs = []
    for num_rows in (60, 6_000):
        truth, before, _ = draw_classes(3, num_rows)
        interval = degradation_interval(score, truth, before, before)
        assert interval.value == 0
        highs.append(interval.high)
    assert highs[0] > 0.01 > highs[1] > 0


@pytest.mark.parametrize("name", ["macro_f1", "average_precision", "r2", "mae"])
def test_the_interval_of_a_degradation_covers_the_true_value(name):
    score = Score(name=name)
    draw = draw_classes if score.facts.task == "classification" else draw_numbers
    truth, before, after = draw(100, 40_000)
    values = [compute_score(score, truth, predictions) for predictions in (before, after)]
    expected = values[1] / values[0] - 1 if score.is_error else values[0] - values[1]
    intervals = [degradation_interval(score, *draw(seed, 300)) for seed in range(40)]
    assert sum(interval.low <= expected <= interval.high for interval in intervals) >= 35


def test_rows_of_one_class_and_perfect_predictions_have_an_interval():
    truth = np.zeros(50, int)
    shares = np.tile([0.9, 0.1], (50, 1))
    assert score_interval(Score(name="macro_f1"), truth, shares).value == 1
    assert degradation_interval(Score(name="balanced_accuracy"), truth, shares, shares).high > 0
    perfect = np.eye(2)[[0, 1] * 25]
    interval = score_interval(Score(name="average_precision"), np.array([0, 1] * 25), perfect)
    assert (interval.value, interval.high) == (1, 1)
    assert interval.low < 1


@pytest.mark.parametrize("name", ["auc", "average_precision"])
def test_a_sample_of_many_rows_gives_the_interval_of_all_of_them(name):
    """The limits come closer with the root of the number of rows, although only some of the rows are drawn from."""
    random = np.random.default_rng(5)
    truth = np.arange(80_000) % 2
    share = 1 / (1 + np.exp(-(1.5 * (truth - 0.5) + random.normal(size=len(truth)))))
    shares = np.stack([1 - share, share], axis=1)
    few, many = (score_interval(Score(name=name), truth[:num], shares[:num]) for num in (5_000, 80_000))
    assert 0.18 < (many.high - many.low) / (few.high - few.low) < 0.35


@pytest.mark.parametrize("num_classes", [3, 6])
@pytest.mark.parametrize("name", ["auc", "average_precision"])
def test_rankings_of_several_classes_vary_together(name, num_classes):
    """Rows that are hard for one class are hard for all: interval and standard error over many data sets agree."""

    def draw(seed):
        random = np.random.default_rng(seed)
        truth = random.integers(0, num_classes, 400)
        signal = np.where(random.random(400) < 0.35, 0.0, 3.0)[:, None] * np.eye(num_classes)[truth]
        logits = signal + random.normal(size=(400, num_classes))
        return truth, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    score = Score(name=name)
    spread = np.std([compute_score(score, *draw(seed)) for seed in range(150)])
    intervals = [score_interval(score, *draw(seed)) for seed in range(2)]
    width = np.mean([interval.high - interval.low for interval in intervals])
    assert 0.9 < width / (2 * 1.96 * spread) < 1.25


def test_many_kinds_of_rows_need_little_memory():
    random = np.random.default_rng(0)
    truth, before, after = (random.integers(0, 60, 30_000) for _ in range(3))
    shares = [np.eye(60, dtype=np.float32)[classes] for classes in (before, after)]
    tracemalloc.start()
    interval = degradation_interval(Score(name="balanced_accuracy"), truth, *shares)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert interval.low < interval.value < interval.high
    assert peak < 200_000_000  # all draws at once take 480 MB
