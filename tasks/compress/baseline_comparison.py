"""Compares the predictions of candidates with those of fp32 on rows of every split.

Shapes: N rows of a split, K classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from bloomery.data_contracts.records.output_units import ClassOutputScore
from bloomery.data_contracts.records.records import ClassRecall, Dataset, Disagreement, PredictionInterval
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task, predicts_numbers, predicts_row_classes
from bloomery.models.evaluation.conformal import measure_interval
from bloomery.models.evaluation.disagreement import ChangedRows, bound_accuracy_drop, bound_error_rise
from bloomery.models.evaluation.score_intervals import degradation_interval
from bloomery.models.evaluation.scores import UndefinedScore, compute_score
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.compress.built_candidate import BuiltCandidate
from bloomery.tasks.compress.candidate_builder import CandidateSplits
from bloomery.tasks.evaluation.row_predictions import predict_rows
from bloomery.tasks.evaluation.scoring import (
    GroundTruth,
    build_ground_truth,
    decode_labels,
    name_classes,
    point_predictions,
)

if TYPE_CHECKING:
    from bloomery.models.training.data.batches import Examples

Split = Literal["train", "val", "test", "unlabelled"]
_MIN_ROWS = 2_000  # of each split but the test split, which is compared as a whole


# The predictions of one model for the compared rows of each split: probabilities (N, K), or numbers (N,).
SplitPredictions = dict[Split, np.ndarray]


def sample_splits(splits: CandidateSplits, *, is_private: bool) -> dict[Split, Examples]:
    """The rows that are compared: the test split, and an even sample of at least 2,000 rows of each other split.

    More rows than that would cost time and hardly lower the bound. After private training no training row is read.
    """
    from bloomery.models.training.data.batches import Examples, even_sample

    def sample(rows: Examples) -> Examples:
        size = max(_MIN_ROWS, splits.test.num_rows)
        return Examples(even_sample(rows.x, size), even_sample(rows.y, size), even_sample(rows.key, size))

    samples: dict[Split, Examples] = {"val": sample(splits.val), "test": splits.test}
    if not is_private:
        samples["train"] = sample(splits.train)
    if splits.unlabelled is not None:
        samples["unlabelled"] = sample(splits.unlabelled)
    return samples


def predict_splits(
    candidate: BuiltCandidate, encoder: Encoder, samples: dict[Split, Examples], test: np.ndarray
) -> SplitPredictions:
    """Runs the candidate's file on the rows of `samples`; `test` are its predictions for the test split."""
    from bloomery.models.inference.outputs import compute_outputs

    session = candidate.open_session()

    def compute(x: np.ndarray) -> np.ndarray:
        return compute_outputs(session, x, is_row_by_row=candidate.is_row_by_row)

    values: SplitPredictions = {
        split: predict_rows(encoder, rows.x.numpy(), rows.y.numpy(), compute).values
        for split, rows in samples.items()
        if rows.num_rows and split != "test"
    }
    return {**values, "test": test}


def prediction_changes(task: Task, before: SplitPredictions, after: SplitPredictions) -> dict[Split, np.ndarray]:
    """The differences (N,) of a candidate's predictions from those of fp32 in each split; 0 where they are equal.

    Of sets of labels it is the number of labels that are in only one of both, of several labels the number with another
    class, and of tags the number of words with another one; of vectors, the difference of ranks; of several numbers,
    the root mean square difference in standard units.
    """
    changes: dict[Split, np.ndarray] = {}
    for split, values in before.items():
        difference = point_predictions(task, after[split]) - point_predictions(task, values)
        if task in ("multilabel", "multitask", "tagging"):
            difference = np.count_nonzero(difference, axis=1)
        elif task == "multioutput":
            difference = np.sqrt(np.square(difference).mean(axis=1))
        changes[split] = difference
    return changes


def measure_disagreements(task: Task, changes: dict[Split, np.ndarray]) -> tuple[Disagreement, ...]:
    """How the predictions of a candidate differ from those of fp32 in each split."""
    return tuple(
        Disagreement(split=split, num_rows=len(changes_N), num_changed=int(np.count_nonzero(changes_N)))
        if not predicts_numbers(task)
        else Disagreement(split=split, num_rows=len(changes_N), rms_change=float(np.sqrt(np.mean(changes_N**2))))
        for split, changes_N in changes.items()
    )


def held_out_truths(encoder: Encoder, dataset: Dataset, samples: dict[Split, Examples]) -> dict[Split, GroundTruth]:
    """The labels of the test rows, and of the validation rows if there are any."""
    held_out: tuple[Split, ...] = ("test", "val") if samples["val"].num_rows else ("test",)
    return {split: build_ground_truth(encoder, dataset, samples[split]) for split in held_out}


def bound_degradation(
    score: Score, truths: Mapping[Split, GroundTruth], before: SplitPredictions, after: SplitPredictions
) -> float | None:
    """The upper 95% limit of the degradation on more rows than the test split has; the lower one of two limits.

    The changes of all rows, with or without a label, bound a drop of accuracy, also of that of whole sets, and a rise
    of RMSE. Any score is compared by the labels of `truths`, those of validation and test rows. Labels of training rows
    do not count: fp32 has learnt them, so that a change there says little about other rows. None where no limit exists.
    """
    labels_N = np.concatenate([truth.truth[truth.order] for truth in truths.values()])
    rows = (
        np.concatenate([values[split][truth.order] for split, truth in truths.items()]) for values in (before, after)
    )
    limits = [_bound_by_changes(score, truths["test"], before, after)]
    with contextlib.suppress(UndefinedScore):
        limits.append(degradation_interval(score, labels_N, *rows).high)
    return min((limit for limit in limits if limit is not None), default=None)


def _bound_by_changes(
    score: Score, test: GroundTruth, before: SplitPredictions, after: SplitPredictions
) -> float | None:
    """The limit by the changes of predictions; None of a score that they do not bound."""
    changes = prediction_changes(score.facts.task, before, after)
    training_N = changes.get("train", np.empty(0))
    held_out_N = np.concatenate([changes_N for split, changes_N in changes.items() if split != "train"])
    if score.name == "mean_accuracy" and (test.truth < 0).any():  # a label of few rows may change with few of all rows
        return None
    # A changed row changes these by at most one row.
    if score.name in ("accuracy", "subset_accuracy", "mean_accuracy", "exact_match"):
        counts = (ChangedRows(int(np.count_nonzero(rows_N)), len(rows_N)) for rows_N in (training_N, held_out_N))
        return bound_accuracy_drop(*counts)
    if score.name in ("rmse", "mean_rmse"):
        # The mean of root mean squares over the outputs is at most that of all outputs together.
        return bound_error_rise(training_N, held_out_N, compute_score(score, test.truth, before["test"]))
    return None


def measure_intervals(
    encoder: Encoder, samples: dict[Split, Examples], predictions: SplitPredictions
) -> PredictionInterval | None:
    """The conformal interval of a regression by the errors of validation rows, and its coverage of the test rows."""
    if "val" not in predictions:
        return None
    calibration, test = (predictions[split] - decode_labels(encoder, samples[split]) for split in ("val", "test"))
    return measure_interval(calibration, test)


def measure_output_changes(
    scores: Sequence[ClassOutputScore],
    dataset: Dataset,
    samples: dict[Split, Examples],
    before: SplitPredictions,
    after: SplitPredictions,
) -> tuple[ClassOutputScore, ...]:
    """The scores of several labels with classes, with the paired change of each from fp32 on the held-out rows."""
    truth_NM, was_right_NM, is_right_NM, _ = _compare_held_out(dataset, samples, before, after)
    numbers = {output.name: number for number, output in enumerate(dataset.class_outputs)}
    columns = [numbers[score.name] for score in scores]
    return tuple(
        score.model_copy(
            update={
                "num_compared": int((truth_NM[:, column] >= 0).sum()),
                "num_lost": int((was_right_NM & ~is_right_NM)[:, column].sum()),
                "num_gained": int((~was_right_NM & is_right_NM)[:, column].sum()),
            }
        )
        for score, column in zip(scores, columns, strict=True)
    )


def _compare_held_out(
    dataset: Dataset, samples: dict[Split, Examples], before: SplitPredictions, after: SplitPredictions
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of the held-out rows the truth, whether either model is right, and which rows are those of the test split."""
    held_out: tuple[Split, ...] = tuple(split for split in ("val", "test") if split in before)
    truth = np.concatenate([samples[split].y.numpy() for split in held_out])
    correct_before, correct_after = (
        np.concatenate([point_predictions(dataset.task, predictions[split]) for split in held_out]) == truth
        for predictions in (before, after)
    )
    is_test = np.concatenate([np.full(samples[split].num_rows, split == "test") for split in held_out])
    return truth, correct_before, correct_after, is_test


def measure_recalls(
    dataset: Dataset, samples: dict[Split, Examples], before: SplitPredictions, after: SplitPredictions
) -> tuple[ClassRecall, ...]:
    """The recall of each class or label with held-out rows, and its paired change from fp32; empty of other tasks."""
    if not predicts_row_classes(dataset.task):
        return ()
    truth, correct_before, correct_after, is_test = _compare_held_out(dataset, samples, before, after)

    def count(name: object, rows: np.ndarray, was_right: np.ndarray, is_right: np.ndarray) -> ClassRecall:
        return ClassRecall(
            name=str(name),
            num_rows=int((rows & is_test).sum()),
            num_right=int((rows & is_test & is_right).sum()),
            num_compared=int(rows.sum()),
            num_lost=int((rows & was_right & ~is_right).sum()),
            num_gained=int((rows & ~was_right & is_right).sum()),
        )

    if dataset.class_outputs:
        recalls = (
            count(name, truth[:, number] == position, correct_before[:, number], correct_after[:, number])
            for number, position, name in name_classes(dataset.class_outputs)
        )
    elif dataset.task == "multilabel":
        recalls = (
            count(name, truth[:, position] > 0, correct_before[:, position], correct_after[:, position])
            for position, name in enumerate(dataset.classes)
        )
    else:
        recalls = (
            count(name, truth == position, correct_before, correct_after)
            for position, name in enumerate(dataset.classes)
        )
    return tuple(recall for recall in recalls if recall.num_compared)
