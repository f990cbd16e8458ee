"""Compares the predictions of candidates with those of fp32 on rows of every split.

Shapes: N rows of a split, K classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from bloomery.data_contracts.records.records import ClassRecall, Dataset, Disagreement, PredictionInterval
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.models.evaluation.conformal import measure_interval
from bloomery.models.evaluation.disagreement import (
    ChangedRows,
    bound_accuracy_drop,
    bound_error_rise,
    changes_further,
    changes_more,
)
from bloomery.models.evaluation.score_intervals import degradation_interval
from bloomery.models.evaluation.scores import UndefinedScore, compute_score
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.compress.built_candidate import BuiltCandidate
from bloomery.tasks.compress.candidate_builder import CandidateSplits
from bloomery.tasks.evaluation.scoring import decode_labels, point_predictions

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
    from bloomery.models.inference.outputs import compute_outputs, predictions_from
    from bloomery.models.inference.runtime import create_session

    session = create_session(candidate.path)
    values: SplitPredictions = {
        split: predictions_from(
            encoder, compute_outputs(session, rows.x.numpy(), is_row_by_row=candidate.is_row_by_row)
        )
        for split, rows in samples.items()
        if rows.num_rows and split != "test"
    }
    return {**values, "test": test}


def prediction_changes(task: Task, before: SplitPredictions, after: SplitPredictions) -> dict[Split, np.ndarray]:
    """The differences (N,) of a candidate's predictions from those of fp32 in each split; 0 where they are equal.

    Of sets of labels it is the number of labels that are in only one of both.
    """
    changes: dict[Split, np.ndarray] = {}
    for split, values in before.items():
        difference = point_predictions(task, after[split]) - point_predictions(task, values)
        changes[split] = np.abs(difference).sum(axis=1) if task == "multilabel" else difference
    return changes


def measure_disagreements(task: Task, changes: dict[Split, np.ndarray]) -> tuple[Disagreement, ...]:
    """How the predictions of a candidate differ from those of fp32 in each split."""
    return tuple(
        Disagreement(split=split, num_rows=len(changes_N), num_changed=int(np.count_nonzero(changes_N)))
        if task != "regression"
        else Disagreement(split=split, num_rows=len(changes_N), rms_change=float(np.sqrt(np.mean(changes_N**2))))
        for split, changes_N in changes.items()
    )


def bound_degradation(
    score: Score, encoder: Encoder, samples: dict[Split, Examples], before: SplitPredictions, after: SplitPredictions
) -> float | None:
    """The upper 95% limit of the degradation that the changed predictions allow, on more rows than the test split has.

    A change of accuracy or RMSE is bounded by the changes of all rows. Any other score is compared on the labelled rows
    of all splits; None where it does not exist for them.
    """
    changes = prediction_changes(score.facts.task, before, after)
    training_N = changes.get("train", np.empty(0))
    held_out_N = np.concatenate([changes_N for split, changes_N in changes.items() if split != "train"])
    counts = [ChangedRows(int(np.count_nonzero(rows_N)), len(rows_N)) for rows_N in (training_N, held_out_N)]
    if score.name == "accuracy":
        return bound_accuracy_drop(*counts)
    if score.name == "rmse":
        error = compute_score(score, decode_labels(encoder, samples["test"]), before["test"])
        return bound_error_rise(training_N, held_out_N, error)
    labelled = [split for split in before if split != "unlabelled" and samples[split].num_rows]
    has_classes = score.facts.task != "regression"
    if changes_more(counts[1], counts[0]) if has_classes else changes_further(held_out_N, training_N):
        labelled.remove("train")
    truth_N = np.concatenate([decode_labels(encoder, samples[split]) for split in labelled])
    rows = (np.concatenate([predictions[split] for split in labelled]) for predictions in (before, after))
    try:
        return degradation_interval(score, truth_N, *rows).high
    except UndefinedScore:
        return None


def measure_intervals(
    encoder: Encoder, samples: dict[Split, Examples], predictions: SplitPredictions
) -> PredictionInterval | None:
    """The conformal interval of a regression by the errors of validation rows, and its coverage of the test rows."""
    if "val" not in predictions:
        return None
    calibration, test = (predictions[split] - decode_labels(encoder, samples[split]) for split in ("val", "test"))
    return measure_interval(calibration, test)


def measure_recalls(
    dataset: Dataset, samples: dict[Split, Examples], before: SplitPredictions, after: SplitPredictions
) -> tuple[ClassRecall, ...]:
    """The recall of each class or label with held-out rows, and its paired change from fp32; empty of a regression."""
    if dataset.task == "regression":
        return ()
    held_out: tuple[Split, ...] = tuple(split for split in ("val", "test") if split in before)
    truth = np.concatenate([samples[split].y.numpy() for split in held_out])
    correct_before, correct_after = (
        np.concatenate([point_predictions(dataset.task, predictions[split]) for split in held_out]) == truth
        for predictions in (before, after)
    )
    is_test = np.concatenate([np.full(samples[split].num_rows, split == "test") for split in held_out])

    def count(name: object, position: int) -> ClassRecall:
        rows, correct = truth == position, (correct_before, correct_after)
        if dataset.task == "multilabel":
            rows, correct = truth[:, position] > 0, (correct_before[:, position], correct_after[:, position])
        was_correct, is_correct = correct
        return ClassRecall(
            name=str(name),
            num_rows=int((rows & is_test).sum()),
            num_right=int((rows & is_test & is_correct).sum()),
            num_compared=int(rows.sum()),
            num_lost=int((rows & was_correct & ~is_correct).sum()),
            num_gained=int((rows & ~was_correct & is_correct).sum()),
        )

    recalls = (count(name, position) for position, name in enumerate(dataset.classes))
    return tuple(recall for recall in recalls if recall.num_compared)
