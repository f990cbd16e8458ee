"""Computes the metrics of the model card from the predictions of the chosen candidate on the test split.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bloomery.data_contracts.records.output_units import ClassOutputScore, OutputScore
from bloomery.data_contracts.records.records import Choice, Dataset, Interval
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task, predicts_one_class
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.calibration import (
    CalibrationBins,
    calibration_bins,
    expected_calibration_error,
    predicted_decisions,
)
from bloomery.models.evaluation.scores import compute_metrics
from bloomery.models.evaluation.tag_scores import count_types
from bloomery.tasks.evaluation.held_out import ground_truth, predicted_values, read_measured_predictions
from bloomery.tasks.evaluation.scoring import GroundTruth, slice_table


class ClassResult(NamedTuple):
    """The metrics of one class; None where it has no rows, or is never predicted."""

    name: str
    num_rows: int
    recall: Interval | None
    precision: Interval | None


class SliceResult(NamedTuple):
    """The score of the rows with one value of a column."""

    column: str
    value: str
    num_rows: int
    score: Interval


class CardMetrics(NamedTuple):
    """Metrics of the test split. `further` holds metrics beside the score, by name."""

    score: Interval
    num_rows: int
    further: dict[str, float]
    classes: tuple[ClassResult, ...]
    slices: tuple[SliceResult, ...]
    bins: CalibrationBins | None  # None of a regression; of sets of labels, decisions for a label
    calibration_error: float | None
    outputs: tuple[OutputScore, ...] = ()
    class_outputs: tuple[ClassOutputScore, ...] = ()


def compute_card_metrics(choice: Choice) -> CardMetrics:
    """Computes the metrics from the predictions that `compress` has stored, without running the model."""
    dataset = choice.candidates.trained.dataset
    table = read_measured_predictions(choice)
    truth, predictions = ground_truth(dataset, table), predicted_values(dataset, table)
    bins: CalibrationBins | None = None
    classes: tuple[ClassResult, ...] = ()
    if predicts_one_class(dataset.task):
        bins = calibration_bins(truth.truth, predictions)
        classes = _class_results(truth.truth, predictions, dataset.classes)
    elif dataset.class_outputs:
        is_known_NM = truth.truth >= 0
        bins = calibration_bins(truth.truth[is_known_NM], predictions[is_known_NM])
        classes = _class_output_results(dataset, truth.truth, predictions)
    elif dataset.task == "tagging":
        counts = count_types(dataset.classes, truth.truth, predictions)
        names, *numbers = zip(*counts, strict=True)
        classes = _make_results(names, *(np.array(values) for values in numbers))
    elif dataset.task == "multilabel":
        bins = calibration_bins(*predicted_decisions(truth.truth, predictions))
        classes = _label_results(truth.truth, decide_labels(predictions), dataset.classes)
    return CardMetrics(
        score=choice.candidate.score,
        num_rows=table.num_rows,
        further=_further_metrics(dataset.task, choice.candidates.trained.score, truth.truth, predictions),
        classes=classes,
        slices=_slice_results(choice, truth, predictions),
        bins=bins,
        calibration_error=None if bins is None else expected_calibration_error(bins),
        outputs=choice.candidate.outputs,
        class_outputs=choice.candidate.class_outputs,
    )


def _further_metrics(task: Task, score: Score, truth_N: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The scores beside the recipe's own, by the names that people know."""
    values = compute_metrics(task, truth_N, predictions)
    return {Score.model_validate({"name": name}).title: value for name, value in values.items() if name != score.name}


def _class_results(
    truth_N: np.ndarray, probabilities_NK: np.ndarray, classes: tuple[int | str, ...]
) -> tuple[ClassResult, ...]:
    """Recall and precision of each class, with Wilson's 95% intervals."""
    counts_KK = metrics.confusion_matrix(truth_N, probabilities_NK.argmax(axis=1), len(classes))
    return _make_results(classes, np.diag(counts_KK), counts_KK.sum(axis=1), counts_KK.sum(axis=0))


def _class_output_results(dataset: Dataset, truth_NM: np.ndarray, shares_NMK: np.ndarray) -> tuple[ClassResult, ...]:
    """Recall and precision of each class of several labels, among the rows that have the label."""
    results: list[ClassResult] = []
    for number, output in enumerate(dataset.class_outputs):
        is_known_N = truth_NM[:, number] >= 0
        names = tuple(f"{output.name}={name}" for name in output.classes)
        results += _class_results(truth_NM[is_known_N, number], shares_NMK[is_known_N, number], names)
    return tuple(results)


def _label_results(
    truth_NK: np.ndarray, labels_NK: np.ndarray, classes: tuple[int | str, ...]
) -> tuple[ClassResult, ...]:
    """Recall and precision of each label, with Wilson's 95% intervals."""
    return _make_results(classes, (truth_NK * labels_NK).sum(axis=0), truth_NK.sum(axis=0), labels_NK.sum(axis=0))


def _make_results(
    classes: tuple[int | str, ...], correct_K: np.ndarray, rows_K: np.ndarray, predicted_K: np.ndarray
) -> tuple[ClassResult, ...]:
    columns = zip(classes, correct_K.tolist(), rows_K.tolist(), predicted_K.tolist(), strict=True)
    return tuple(
        ClassResult(
            str(name),
            num_rows,
            metrics.proportion(num_correct, num_rows) if num_rows else None,
            metrics.proportion(num_correct, num_predicted) if num_predicted else None,
        )
        for name, num_correct, num_rows, num_predicted in columns
    )


def _slice_results(choice: Choice, truth: GroundTruth, predictions: np.ndarray) -> tuple[SliceResult, ...]:
    trained = choice.candidates.trained
    if not trained.slice_columns:
        return ()
    table = slice_table(trained.dataset, trained.slice_columns, truth, predictions)
    rows = zip(*(table[name] for name in ("column", "value", "rows", "score", "low", "high")), strict=True)
    return tuple(
        SliceResult(column, value, num_rows, Interval(value=score, low=low, high=high))
        for column, value, num_rows, score, low, high in rows
    )
