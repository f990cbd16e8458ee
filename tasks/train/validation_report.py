"""What is told of a trained network's answers to the validation part: figures, tables and pictures for its run.

Shapes: N rows, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from bloomery.data_contracts.records.records import Dataset
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.calibration import calibration_bins, expected_calibration_error
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.evaluation import plots
from bloomery.tasks.evaluation.scoring import GroundTruth, build_ground_truth, class_table, slice_table
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.training.data.batches import Examples

_WORST_ROWS = 100
_DRAWN_ROWS = 18


def log_validation_report(
    run_id: str,
    folder: Path,
    network: nn.Module,
    part: Examples,
    dataset: Dataset,
    encoder: Encoder,
    slices: tuple[str, ...],
) -> None:
    """Afterwards the run has figures and tables of the answers to `part`, and all that is in `folder` as artifacts."""
    from bloomery.models.inference.outputs import predictions_from
    from bloomery.models.training.loop import predict

    rows = build_ground_truth(encoder, dataset, part)
    given = predictions_from(encoder, predict(network, part.x).numpy())
    if dataset.task == "classification":
        figures = _of_classes(run_id, folder, rows, given, dataset)
    else:
        figures = _of_figures(folder, rows, given)
    if slices:
        mlflow_runs.client().log_table(run_id, slice_table(dataset, slices, rows, given), "val_per_slice.json")
    worst = _worst(rows, given)
    mlflow_runs.client().log_table(run_id, _table_of(worst, rows, given, dataset), "val_worst.json")
    if dataset.layout.kind == "image" and len(worst):
        shown = worst[:_DRAWN_ROWS]
        captions = _captions(shown, rows, given, dataset)
        plots.plot_images(part.x[shown.copy()].numpy(), captions, folder / "val_worst.png")
    mlflow_runs.client().log_artifacts(run_id, str(folder))
    mlflow_runs.log_metrics(run_id, figures)


def _of_classes(
    run_id: str, folder: Path, rows: GroundTruth, shares_NK: np.ndarray, dataset: Dataset
) -> dict[str, float]:
    counts = metrics.confusion_matrix(rows.truth, shares_NK.argmax(axis=1), len(dataset.classes))
    if len(dataset.classes) <= plots.MOST_DRAWN_CLASSES:
        plots.plot_confusion_matrix(counts, dataset.classes, folder / "val_confusion.png")
    else:
        _write_confusions(counts, dataset.classes, folder / "val_confusion.csv")
    mlflow_runs.client().log_table(run_id, class_table(dataset.classes, rows, shares_NK), "val_per_class.json")
    found = calibration_bins(rows.truth, shares_NK)
    error = expected_calibration_error(found)
    plots.plot_calibration(found, error, folder / "val_calibration.png")
    figures = {
        "best_val_accuracy": float((shares_NK.argmax(axis=1) == rows.truth).mean()),
        "val_log_loss": metrics.log_loss(rows.truth, shares_NK),
        "val_calibration_error": error,
    }
    area = metrics.roc_auc(rows.truth == 1, shares_NK[:, 1]) if len(dataset.classes) == 2 else None
    return figures if area is None else figures | {"val_auc": area}


def _of_figures(folder: Path, rows: GroundTruth, given_N: np.ndarray) -> dict[str, float]:
    plots.plot_predictions(rows.truth, given_N, folder / "val_answers.png")
    return {
        "best_val_rmse": float(np.sqrt(((given_N - rows.truth) ** 2).mean())),
        "val_mae": metrics.mean_absolute_error(rows.truth, given_N),
        "val_r2": metrics.r_squared(rows.truth, given_N),
    }


def _write_confusions(counts_KK: np.ndarray, classes: tuple[int | str, ...], path: Path) -> None:
    """The pairs of classes that were taken for each other, most frequent first."""
    off_KK = counts_KK - np.diag(np.diag(counts_KK))
    truth, answers = np.nonzero(off_KK)
    order = np.argsort(-off_KK[truth, answers], kind="stable")
    names = [str(one) for one in classes]
    table = pa.table(
        {
            "truth": [names[place] for place in truth[order]],
            "answer": [names[place] for place in answers[order]],
            "rows": off_KK[truth, answers][order],
        }
    )
    pyarrow.csv.write_csv(table, path)


def _worst(rows: GroundTruth, given: np.ndarray) -> np.ndarray:
    """Where the worst answers are, worst first: wrong classes by the probability of the truth, or large errors."""
    if given.ndim == 1:
        return np.argsort(-np.abs(given - rows.truth), kind="stable")[:_WORST_ROWS]
    of_truth_N = given[np.arange(len(given)), rows.truth]
    wrong = np.flatnonzero(given.argmax(axis=1) != rows.truth)
    return wrong[np.argsort(of_truth_N[wrong], kind="stable")][:_WORST_ROWS]


def _table_of(places: np.ndarray, rows: GroundTruth, given: np.ndarray, dataset: Dataset) -> dict[str, list[Any]]:
    table = {dataset.key: [str(key) for key in rows.key[places].tolist()]}
    if given.ndim == 1:
        return table | {"truth": rows.truth[places].tolist(), "answer": given[places].tolist()}
    answers = given[places].argmax(axis=1)
    return table | {
        "truth": [str(dataset.classes[place]) for place in rows.truth[places]],
        "answer": [str(dataset.classes[place]) for place in answers],
        "probability of the truth": given[places, rows.truth[places]].tolist(),
        "probability of the answer": given[places, answers].tolist(),
    }


def _captions(places: np.ndarray, rows: GroundTruth, given: np.ndarray, dataset: Dataset) -> list[str]:
    if given.ndim == 1:
        return [f"{given[place]:.4g}, is {rows.truth[place]:.4g}" for place in places]
    classes = [str(one) for one in dataset.classes]
    return [f"{classes[given[place].argmax()]}, is {classes[rows.truth[place]]}" for place in places]
