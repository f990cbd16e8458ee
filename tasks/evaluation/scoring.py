"""Scores predictions over all rows, by class, and by slice, and compares the predictions of two models.

Shapes: N rows, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bloomery.data_contracts.records.output_units import ClassOutput
from bloomery.data_contracts.records.records import Dataset, Interval
from bloomery.data_contracts.records.scores import MEAN_ACCURACY, MEAN_RMSE, Score, default_score
from bloomery.data_contracts.records.tensor_layout import Task, predicts_numbers, predicts_one_class
from bloomery.data_contracts.serving.entities import code_tags
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.class_output_scores import label_degradation_interval, label_score_interval, one_hot
from bloomery.models.evaluation.label_sets import are_sets_right, label_metrics
from bloomery.models.evaluation.output_scores import is_known, output_degradation_interval, output_score_interval
from bloomery.models.evaluation.retrieval import gain_drop, gain_interval
from bloomery.models.evaluation.score_intervals import degradation_interval, score_interval
from bloomery.models.evaluation.scores import compute_metrics, compute_score, require_score
from bloomery.models.evaluation.tag_scores import count_types, tag_score_drop, tag_score_interval
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.evaluation.slices import bootstrap_order, find_slices, read_slice_values

if TYPE_CHECKING:
    from bloomery.models.training.data.batches import Examples

_ALL_ROWS = slice(None)


class GroundTruth(NamedTuple):
    """The true labels of a split.

    Attributes:
        key: the keys of the rows (N,).
        truth: positions of classes int64 (N,), numbers float64 (N,), or sets of labels as 0 and 1 (N, K); of an
            embedding, whose predictions are ranks, positions of positives int64 (N,) among those of the split; of a
            tagging task, codes of tags (N, T), NO_TAG where there is none.
        order: positions (N,) in the order in which a bootstrap draws rows, see `bootstrap_order`.
    """

    key: np.ndarray
    truth: np.ndarray
    order: np.ndarray


def build_ground_truth(encoder: Encoder, dataset: Dataset, split: Examples) -> GroundTruth:
    truth_N = decode_labels(encoder, split)
    if not predicts_numbers(dataset.task):
        return GroundTruth(split.key, truth_N, np.arange(len(split.key)))
    return GroundTruth(split.key, truth_N, bootstrap_order(dataset, encoder.features, split.key))


def decode_labels(encoder: Encoder, split: Examples) -> np.ndarray:
    """Returns the labels of encoded rows: positions of classes (N,), numbers (N,) in the units of the label, or sets.

    Sets of labels are 0 and 1 for each label, int8 (N, K). Texts are positions among the split's.
    """
    from bloomery.models.evaluation.retrieval import build_corpus
    from bloomery.models.inference.outputs import predictions_from

    if encoder.features.task == "tagging":
        return code_tags(encoder.classes, split.y.numpy())
    if encoder.features.task == "multilabel":
        return split.y.numpy().astype(np.int8)
    if encoder.outputs or encoder.class_outputs:
        return split.y.numpy()
    if encoder.features.task == "embedding":
        return build_corpus(split.x.numpy(), split.y.numpy()).positives
    return split.y.numpy() if encoder.units is None else predictions_from(encoder, split.y.numpy()[:, None])


def score_predictions(score: Score, truth: GroundTruth, predictions: np.ndarray) -> Interval:
    """Returns the score of the test rows with its 95% interval. `predictions` are probabilities (N, K) or numbers (N,).

    Raises:
        DataUnfit: the score does not exist for their labels.
    """
    require_score(score, truth.truth, predictions, "test")
    return score_interval(score, truth.truth[truth.order], predictions[truth.order])


def compare_predictions(score: Score, truth: GroundTruth, before: np.ndarray, after: np.ndarray) -> Interval:
    """Returns the degradation of the score from `before` to `after`: probabilities (N, K), or numbers (N,)."""
    return degradation_interval(score, truth.truth[truth.order], before[truth.order], after[truth.order])


def compute_all_scores(task: Task, score: Score, truth: GroundTruth, predictions: np.ndarray) -> dict[str, float]:
    """Returns the recipe's score and all others that are defined, by name."""
    return {
        **compute_metrics(task, truth.truth, predictions),
        score.name: compute_score(score, truth.truth, predictions),
    }


def score_rows(
    task: Task, truth: GroundTruth, predictions: np.ndarray, subset: np.ndarray | slice = _ALL_ROWS
) -> Interval:
    """Returns accuracy, subset accuracy, nDCG@10, tag accuracy or RMSE of the rows in `subset`.

    `predictions` are probabilities (N, K), or numbers (N,).
    """
    if task == "tagging":
        return tag_score_interval(default_score(task).name, truth.truth[subset], predictions[subset])
    if task == "embedding":
        return gain_interval(default_score(task).name, predictions[subset])
    if task == "multilabel":
        return metrics.accuracy(are_sets_right(truth.truth[subset], decide_labels(predictions[subset])))
    if predicts_one_class(task):
        return metrics.accuracy(predictions[subset].argmax(axis=1) == truth.truth[subset])
    order_N = truth.order[subset]
    if task == "multioutput":
        return output_score_interval(MEAN_RMSE.name, truth.truth[order_N], predictions[order_N])
    if task == "multitask":
        name = MEAN_ACCURACY.name
        return label_score_interval(name, truth.truth[order_N], predictions[order_N], score_interval)
    return metrics.rmse(truth.truth[order_N], predictions[order_N])


def measure_degradation(
    task: Task, truth: GroundTruth, before: np.ndarray, after: np.ndarray, subset: np.ndarray | slice = _ALL_ROWS
) -> Interval:
    """Returns the drop of accuracy, or the relative rise of RMSE, from `before` to `after` on the rows in `subset`.

    Both are positions of classes (N,), numbers (N,), or sets of labels (N, K), which are right as a whole or not; or
    ranks, whose nDCG@10 drops, or codes of tags (N, T), whose accuracy drops.
    """
    if task == "tagging":
        return tag_score_drop(default_score(task).name, truth.truth[subset], before[subset], after[subset])
    if task == "embedding":
        return gain_drop(default_score(task).name, before[subset], after[subset])
    if task == "multilabel":
        sets = (are_sets_right(truth.truth[subset], labels[subset]) for labels in (before, after))
        return metrics.accuracy_drop(*sets)
    if predicts_one_class(task):
        truth_N = truth.truth[subset]
        return metrics.accuracy_drop(before[subset] == truth_N, after[subset] == truth_N)
    order_N = truth.order[subset]
    if task == "multioutput":
        return output_degradation_interval(MEAN_RMSE.name, truth.truth[order_N], before[order_N], after[order_N])
    if task == "multitask":
        shares_before, shares_after = (one_hot(classes_NM[order_N]) for classes_NM in (before, after))
        return label_degradation_interval(
            MEAN_ACCURACY.name, truth.truth[order_N], shares_before, shares_after, degradation_interval
        )
    return metrics.rmse_rise(truth.truth[order_N], before[order_N], after[order_N])


def point_predictions(task: Task, predictions: np.ndarray) -> np.ndarray:
    """Returns the positions of the most probable classes (N,), or sets of labels (N, K), from probabilities (N, K).

    Numbers (N,) and codes of tags (N, T) are unchanged.
    """
    if task == "multilabel":
        return decide_labels(predictions)
    if task == "multitask":
        return predictions.argmax(axis=2)
    return predictions.argmax(axis=1) if predicts_one_class(task) and predictions.ndim == 2 else predictions


def name_classes(outputs: Sequence[ClassOutput]) -> list[tuple[int, int, str]]:
    """Each class of several labels: the positions of its label and of the class, and a name such as `colour=red`."""
    return [
        (number, position, f"{output.name}={name}")
        for number, output in enumerate(outputs)
        for position, name in enumerate(output.classes)
    ]


class SliceDegradation(NamedTuple):
    """The rows with one value of a column, and the degradation from one model to another on them."""

    column: str
    value: str
    num_rows: int
    degradation: Interval

    def __str__(self) -> str:
        return f"{self.column}={self.value}"


def degradation_by_slice(
    dataset: Dataset, columns: Sequence[str], truth: GroundTruth, before: np.ndarray, after: np.ndarray
) -> list[SliceDegradation]:
    """Returns a degradation for each value of each of `columns`. The arguments are those of `measure_degradation`."""
    return [
        SliceDegradation(column, value, num_rows, measure_degradation(dataset.task, truth, before, after, subset))
        for column, value, num_rows, subset in _iterate_slices(dataset, columns, truth)
    ]


def degradation_by_class(
    dataset: Dataset, truth: GroundTruth, before: np.ndarray, after: np.ndarray
) -> list[SliceDegradation]:
    """Returns a degradation for each class that has rows. The arguments are those of `measure_degradation`.

    Of a multilabel task it is the drop of a label's recall, among the rows that have the label.
    """
    if dataset.task == "multilabel":
        return [
            SliceDegradation(
                "label", str(name), len(rows), metrics.accuracy_drop(before[rows, label] > 0, after[rows, label] > 0)
            )
            for label, name in enumerate(dataset.classes)
            if len(rows := np.flatnonzero(truth.truth[:, label]))
        ]
    if dataset.class_outputs:
        return [
            SliceDegradation(
                "class",
                name,
                len(rows),
                metrics.accuracy_drop(before[rows, number] == position, after[rows, number] == position),
            )
            for number, position, name in name_classes(dataset.class_outputs)
            if len(rows := np.flatnonzero(truth.truth[:, number] == position))
        ]
    subsets = [(str(name), truth.truth == position) for position, name in enumerate(dataset.classes)]
    return [
        SliceDegradation(
            "class", name, int(subset.sum()), measure_degradation(dataset.task, truth, before, after, subset)
        )
        for name, subset in subsets
        if subset.any()
    ]


def class_table(classes: Sequence[object], truth: GroundTruth, probabilities_NK: np.ndarray) -> dict[str, list[Any]]:
    """Rows, recall and precision of each class, or each label of a multilabel task, as columns of a table."""
    if truth.truth.ndim == 2:
        results = label_metrics(truth.truth, decide_labels(probabilities_NK))
    else:
        counts = metrics.confusion_matrix(truth.truth, probabilities_NK.argmax(axis=1), len(classes))
        results = metrics.class_metrics(counts)
    return {
        "class": [str(name) for name in classes],
        "rows": [result.num_rows for result in results],
        "recall": [result.recall for result in results],
        "precision": [result.precision for result in results],
    }


def entity_table(tags: Sequence[int | str], truth: GroundTruth, codes_NT: np.ndarray) -> dict[str, list[Any]]:
    """Number, recall and precision of the entities of each type, or of the words with each tag, as columns."""
    counts = count_types(tags, truth.truth, codes_NT)
    return {
        "class": [result.name for result in counts],
        "number": [result.num_true for result in counts],
        "recall": [result.num_right / result.num_true if result.num_true else None for result in counts],
        "precision": [result.num_right / result.num_predicted if result.num_predicted else None for result in counts],
    }


def slice_table(
    dataset: Dataset, columns: Sequence[str], truth: GroundTruth, predictions: np.ndarray
) -> dict[str, list[Any]]:
    """Rows and score of each slice, as columns of a table."""
    slices = [
        (column, value, num_rows, score_rows(dataset.task, truth, predictions, subset))
        for column, value, num_rows, subset in _iterate_slices(dataset, columns, truth)
    ]
    return {
        "column": [column for column, *_ in slices],
        "value": [value for _, value, *_ in slices],
        "rows": [num_rows for _, _, num_rows, _ in slices],
        "score": [score.value for *_, score in slices],
        "low": [score.low for *_, score in slices],
        "high": [score.high for *_, score in slices],
    }


def _iterate_slices(
    dataset: Dataset, columns: Sequence[str], truth: GroundTruth
) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """Yields column, value, number of rows, and a mask of the rows (N,); of a regression in bootstrap order.

    Slices without any label of several outputs have no score, and are left out.
    """
    values = read_slice_values(dataset, truth.key, columns)
    has_label_N: np.ndarray = np.ones(len(truth.key), bool)
    if dataset.task in ("multioutput", "multitask"):
        has_label_N = np.asarray(is_known(truth.truth).any(axis=1))
    for column in columns:
        for value, subset in find_slices(values[column]):
            if (subset & has_label_N).any():
                mask = subset[truth.order] if predicts_numbers(dataset.task) else subset
                yield column, value, int(subset.sum()), mask
