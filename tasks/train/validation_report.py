"""Reports how a trained network predicts the validation split: metrics, tables and plots in its MLflow run.

Shapes: N rows, K classes or labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.output_units import restore_units
from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.tensor_layout import Task, predicts_one_class
from bloomery.data_contracts.serving.entities import NO_TAG
from bloomery.data_contracts.serving.predictions import decide_labels
from bloomery.models.evaluation import metrics
from bloomery.models.evaluation.calibration import calibration_bins, expected_calibration_error, predicted_decisions
from bloomery.models.evaluation.label_sets import are_sets_right
from bloomery.models.evaluation.scores import compute_metrics, compute_score
from bloomery.models.features.labels import name_labels, name_tags
from bloomery.tasks.evaluation import plots
from bloomery.tasks.evaluation.output_scores import (
    class_output_columns,
    name_class_rows,
    output_columns,
    score_each_class_output,
    score_each_output,
)
from bloomery.tasks.evaluation.row_predictions import predict_rows
from bloomery.tasks.evaluation.scoring import (
    GroundTruth,
    build_ground_truth,
    class_table,
    entity_table,
    point_predictions,
    slice_table,
)
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.training_run import TrainingRun

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.training.data.batches import Examples

_CURVES = ("accuracy", "rmse")  # each epoch has logged them, and the best is logged by another name
_NUM_WORST_ROWS = 100
_NUM_PLOTTED_OUTPUTS = 12
_NUM_PLOTTED_ROWS = 18


def log_validation_report(run: TrainingRun, folder: Path, network: nn.Module, split: Examples) -> None:
    """Logs metrics and tables of the predictions for `split`, and all files of `folder` with the plots added to it."""
    import torch

    from bloomery.models.training.loop import predict

    dataset, encoder, slices = run.dataset, run.encoder, run.training.slices
    truth = build_ground_truth(encoder, dataset, split)

    def compute(x: np.ndarray) -> np.ndarray:
        return predict(network, torch.from_numpy(x)).numpy()

    predictions = predict_rows(encoder, split.x.numpy(), split.y.numpy(), compute).values
    values: dict[str, float] = {}
    if predicts_one_class(dataset.task):
        values = _report_classification(run.run_id, folder, truth, predictions, dataset)
    elif dataset.task == "tagging":
        mlflow_runs.client().log_table(
            run.run_id, entity_table(dataset.classes, truth, predictions), "val_per_class.json"
        )
    elif dataset.task == "multilabel":
        values = _report_sets(run.run_id, folder, truth, predictions, dataset)
    elif dataset.class_outputs:
        values = _report_class_outputs(run.run_id, folder, truth, predictions, dataset)
    elif dataset.outputs:
        _report_outputs(run.run_id, folder, truth, predictions, dataset)
    elif dataset.task == "regression":
        values = _report_regression(folder, truth, predictions)
    client = mlflow_runs.client()
    if slices:
        client.log_table(run.run_id, slice_table(dataset, slices, truth, predictions), "val_per_slice.json")
    worst = _find_worst_rows(dataset.task, truth, predictions)
    client.log_table(run.run_id, _make_worst_table(worst, truth, predictions, dataset), "val_worst.json")
    if dataset.layout.kind == "image" and len(worst):
        plotted = worst[:_NUM_PLOTTED_ROWS]
        captions = _make_captions(plotted, truth, predictions, dataset)
        plots.plot_images(split.x[plotted.copy()].numpy(), captions, folder / "val_worst.png")
    client.log_artifacts(run.run_id, str(folder))
    scores = compute_metrics(dataset.task, truth.truth, predictions)
    if run.score.name == "quantile_loss":
        scores["quantile_loss"] = compute_score(run.score, truth.truth, predictions)
    values |= {f"best_val_{run.score.name}": scores[run.score.name]} if run.score.name in scores else {}
    values = {f"val_{name}": value for name, value in scores.items() if name not in _CURVES} | values
    mlflow_runs.log_metrics(run.run_id, values)


def _report_classification(
    run_id: str, folder: Path, truth: GroundTruth, probabilities_NK: np.ndarray, dataset: Dataset
) -> dict[str, float]:
    predicted_N = probabilities_NK.argmax(axis=1)
    counts = metrics.confusion_matrix(truth.truth, predicted_N, len(dataset.classes))
    if len(dataset.classes) <= plots.MAX_PLOTTED_CLASSES:
        plots.plot_confusion_matrix(counts, dataset.classes, folder / "val_confusion.png")
    else:
        _write_confusions(counts, dataset.classes, folder / "val_confusion.csv")
    mlflow_runs.client().log_table(run_id, class_table(dataset.classes, truth, probabilities_NK), "val_per_class.json")
    bins = calibration_bins(truth.truth, probabilities_NK)
    error = expected_calibration_error(bins)
    plots.plot_calibration(bins, error, folder / "val_calibration.png")
    values = {
        "best_val_accuracy": float((predicted_N == truth.truth).mean()),
        "val_log_loss": metrics.log_loss(truth.truth, probabilities_NK),
        "val_calibration_error": error,
    }
    auc = metrics.roc_auc(truth.truth == 1, probabilities_NK[:, 1]) if len(dataset.classes) == 2 else None
    return values if auc is None else values | {"val_auc": auc}


def _report_sets(
    run_id: str, folder: Path, truth: GroundTruth, probabilities_NK: np.ndarray, dataset: Dataset
) -> dict[str, float]:
    """Logs recall and precision of each label, and how well the probabilities of predicted labels are calibrated."""
    mlflow_runs.client().log_table(run_id, class_table(dataset.classes, truth, probabilities_NK), "val_per_label.json")
    values = {"val_labels_per_row": float(decide_labels(probabilities_NK).sum(axis=1).mean())}
    bins = calibration_bins(*predicted_decisions(truth.truth, probabilities_NK))
    if bins.counts.any():
        values["val_calibration_error"] = expected_calibration_error(bins)
        plots.plot_calibration(bins, values["val_calibration_error"], folder / "val_calibration.png")
    return values


def _report_regression(folder: Path, truth: GroundTruth, predictions_N: np.ndarray) -> dict[str, float]:
    plots.plot_predictions(truth.truth, predictions_N, folder / "val_predictions.png")
    return {
        "best_val_rmse": float(np.sqrt(((predictions_N - truth.truth) ** 2).mean())),
        "val_mae": metrics.mean_absolute_error(truth.truth, predictions_N),
        "val_r2": metrics.r_squared(truth.truth, predictions_N),
    }


def _report_outputs(
    run_id: str, folder: Path, truth: GroundTruth, predictions_NK: np.ndarray, dataset: Dataset
) -> None:
    """Logs the errors of each output in its units, and a plot of each."""
    scores = score_each_output(dataset.outputs, truth, predictions_NK)
    mlflow_runs.client().log_table(run_id, output_columns(scores), "val_per_output.json")
    labels_NK, values_NK = (restore_units(dataset.outputs, values) for values in (truth.truth, predictions_NK))
    for number, (labels_N, values_N) in enumerate(zip(labels_NK.T, values_NK.T, strict=True)):
        is_known_N = ~np.isnan(labels_N)
        if is_known_N.any() and number < _NUM_PLOTTED_OUTPUTS:
            # Numbered, since the name of a column need not be that of a file.
            path = folder / f"val_predictions_{number}.png"
            plots.plot_predictions(labels_N[is_known_N], values_N[is_known_N], path)


def _report_class_outputs(
    run_id: str, folder: Path, truth: GroundTruth, shares_NMK: np.ndarray, dataset: Dataset
) -> dict[str, float]:
    """Logs accuracy and log loss of each of several labels with classes, and how well all are calibrated together."""
    scores = score_each_class_output(dataset.class_outputs, truth, shares_NMK)
    mlflow_runs.client().log_table(run_id, class_output_columns(scores), "val_per_output.json")
    for number, output in enumerate(dataset.class_outputs[:_NUM_PLOTTED_OUTPUTS]):
        is_known_N = truth.truth[:, number] >= 0
        if is_known_N.any() and len(output.classes) <= plots.MAX_PLOTTED_CLASSES:
            predicted_N = shares_NMK[is_known_N, number].argmax(axis=1)
            counts = metrics.confusion_matrix(truth.truth[is_known_N, number], predicted_N, len(output.classes))
            plots.plot_confusion_matrix(counts, output.classes, folder / f"val_confusion_{number}.png", output.name)
    is_known_NM = truth.truth >= 0
    bins = calibration_bins(truth.truth[is_known_NM], shares_NMK[is_known_NM])
    error = expected_calibration_error(bins)
    plots.plot_calibration(bins, error, folder / "val_calibration.png")
    return {"val_calibration_error": error}


def _write_confusions(counts_KK: np.ndarray, classes: tuple[int | str, ...], path: Path) -> None:
    """Writes the pairs of true and predicted classes that differ, most frequent first, as CSV."""
    errors_KK = counts_KK - np.diag(np.diag(counts_KK))
    truth, predicted = np.nonzero(errors_KK)
    order = np.argsort(-errors_KK[truth, predicted], kind="stable")
    names = [str(name) for name in classes]
    table = pa.table(
        {
            "truth": [names[position] for position in truth[order]],
            "prediction": [names[position] for position in predicted[order]],
            "rows": errors_KK[truth, predicted][order],
        }
    )
    pyarrow.csv.write_csv(table, path)


def _find_worst_rows(task: Task, truth: GroundTruth, predictions: np.ndarray) -> np.ndarray:
    """Positions of the worst predictions, worst first: wrong classes by the true class's probability, or errors.

    Of sets of labels those with the largest cross entropy, of an embedding the highest ranks of positives, and of rows
    of several labels, and of sentences, those with the most wrong classes or tags.
    """
    if task in ("multitask", "tagging"):
        is_known = truth.truth != NO_TAG if task == "tagging" else truth.truth >= 0  # codes of tags may be negative
        num_wrong_N = ((point_predictions(task, predictions) != truth.truth) & is_known).sum(axis=1)
        wrong = np.flatnonzero(num_wrong_N)
        return wrong[np.argsort(-num_wrong_N[wrong], kind="stable")][:_NUM_WORST_ROWS]
    if task == "embedding":
        wrong = np.flatnonzero(predictions > 1)
        return wrong[np.argsort(-predictions[wrong], kind="stable")][:_NUM_WORST_ROWS]
    if task == "multioutput":
        errors_N = np.nanmax(np.abs(predictions - truth.truth), axis=1)
        return np.argsort(-errors_N, kind="stable")[:_NUM_WORST_ROWS]
    if truth.truth.ndim == 2:
        wrong = np.flatnonzero(~are_sets_right(truth.truth, decide_labels(predictions)))
        losses_N = -np.log(np.maximum(np.where(truth.truth > 0, predictions, 1 - predictions), 1e-12)).mean(axis=1)
        return wrong[np.argsort(-losses_N[wrong], kind="stable")][:_NUM_WORST_ROWS]
    if predictions.ndim == 1:
        return np.argsort(-np.abs(predictions - truth.truth), kind="stable")[:_NUM_WORST_ROWS]
    true_probabilities_N = predictions[np.arange(len(predictions)), truth.truth]
    wrong = np.flatnonzero(predictions.argmax(axis=1) != truth.truth)
    return wrong[np.argsort(true_probabilities_N[wrong], kind="stable")][:_NUM_WORST_ROWS]


def _make_worst_table(
    positions: np.ndarray, truth: GroundTruth, predictions: np.ndarray, dataset: Dataset
) -> dict[str, list[Any]]:
    table = {key_column(dataset.key): [str(key) for key in truth.key[positions].tolist()]}
    if dataset.task == "embedding":
        return table | {"rank of the positive": predictions[positions].tolist()}
    if dataset.class_outputs:
        classes = (truth.truth[positions], predictions[positions].argmax(axis=2))
        names = (map(_join_names, name_class_rows(dataset.class_outputs, values)) for values in classes)
        return table | dict(zip(("truth", "prediction"), map(list, names), strict=True))
    if dataset.task == "tagging":
        is_word = truth.truth[positions] != NO_TAG
        sides = (name_tags(dataset.classes, codes[positions], is_word) for codes in (truth.truth, predictions))
        texts = ([" ".join(map(str, tags)) for tags in side.to_pylist()] for side in sides)
        return table | dict(zip(("truth", "prediction"), texts, strict=True))
    if dataset.outputs:
        sides = (restore_units(dataset.outputs, values[positions]) for values in (truth.truth, predictions))
        texts = ([_join(f"{value:.6g}" for value in row) for row in values] for values in sides)
        return table | dict(zip(("truth", "prediction"), texts, strict=True))
    if predictions.ndim == 1:
        return table | {"truth": truth.truth[positions].tolist(), "prediction": predictions[positions].tolist()}
    if truth.truth.ndim == 2:
        sets = (truth.truth[positions], decide_labels(predictions[positions]))
        texts = ([_join(labels) for labels in name_labels(dataset.classes, values).to_pylist()] for values in sets)
        return table | dict(zip(("truth", "prediction"), texts, strict=True))
    predicted = predictions[positions].argmax(axis=1)
    return table | {
        "truth": [str(dataset.classes[position]) for position in truth.truth[positions]],
        "prediction": [str(dataset.classes[position]) for position in predicted],
        "probability of the truth": predictions[positions, truth.truth[positions]].tolist(),
        "probability of the prediction": predictions[positions, predicted].tolist(),
    }


def _make_captions(positions: np.ndarray, truth: GroundTruth, predictions: np.ndarray, dataset: Dataset) -> list[str]:
    if dataset.class_outputs:
        class_rows = (predictions[positions].argmax(axis=2), truth.truth[positions])
        names = (map(_join_names, name_class_rows(dataset.class_outputs, values)) for values in class_rows)
        return [f"{predicted}, is {true}" for predicted, true in zip(*names, strict=True)]
    if dataset.outputs:
        sides = (restore_units(dataset.outputs, values[positions]) for values in (predictions, truth.truth))
        texts = ([_join(f"{value:.3g}" for value in row) for row in values] for values in sides)
        return [f"{predicted}, is {true}" for predicted, true in zip(*texts, strict=True)]
    if predictions.ndim == 1:
        return [f"{predictions[position]:.4g}, is {truth.truth[position]:.4g}" for position in positions]
    if truth.truth.ndim == 2:
        sets = (decide_labels(predictions[positions]), truth.truth[positions])
        pairs = zip(*(name_labels(dataset.classes, values).to_pylist() for values in sets), strict=True)
        return [f"{_join(predicted)}, is {_join(true)}" for predicted, true in pairs]
    classes = [str(name) for name in dataset.classes]
    return [f"{classes[predictions[position].argmax()]}, is {classes[truth.truth[position]]}" for position in positions]


def _join_names(names: Iterable[str | None]) -> str:
    return ", ".join("unknown" if name is None else name for name in names)


def _join(labels: Iterable[Any]) -> str:
    return ", ".join(map(str, labels)) or "no label"
