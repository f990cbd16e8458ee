"""Plots the metrics of a training run as PNG files.

Shapes: N rows, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.records.tensor_layout import predicts_numbers
from bloomery.tasks.evaluation.figures import create_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bloomery.data_contracts.records.scores import Score
    from bloomery.models.evaluation.calibration import CalibrationBins
    from bloomery.models.training.loop import EpochResult

MAX_PLOTTED_CLASSES = 30
_MAX_POINTS = 2_000  # more points are plotted as a density
_BLUE, _RED, _GREY = "#1f77b4", "#d62728", "#7f7f7f"


def plot_training_curves(epochs: Sequence[EpochResult], score: Score, unit: float, path: Path) -> None:
    """Plots training loss, validation loss and validation score by epoch.

    A regression's score is in the units of the label: `unit` of them are one standard unit.
    """
    figure = create_figure(figsize=(7, 4), layout="constrained")
    loss_axes = figure.subplots()
    numbers = [epoch.number for epoch in epochs]
    loss_axes.plot(numbers, [epoch.train_loss for epoch in epochs], color=_BLUE, label="training loss")
    loss_axes.plot(numbers, [epoch.val_loss for epoch in epochs], color=_RED, label="validation loss")
    is_classes = not predicts_numbers(score.facts.task)
    loss_axes.set(
        xlabel="epoch", ylabel="cross entropy (nats)" if is_classes else "error (standard units)", yscale="log"
    )
    score_axes = loss_axes.twinx()
    scores = [epoch.val_score * unit * (100 if score.facts.is_share else 1) for epoch in epochs]
    score_axes.plot(numbers, scores, color=_GREY, ls="--", label=score.title)
    remark = " (%)" if score.facts.is_share else " (units of the label)" if score.facts.has_label_unit else ""
    score_axes.set(ylabel=f"validation {score.title}{remark}")
    figure.legend(handles=[*loss_axes.lines, *score_axes.lines], loc="outside upper center", ncols=3, frameon=False)
    save_figure(figure, path, 120)


def plot_confusion_matrix(counts: np.ndarray, classes: Sequence[object], path: Path, label: str = "") -> None:
    """Plots counts (K, K) of true and predicted classes as a heat map, for at most `MAX_PLOTTED_CLASSES` classes.

    The title is `label`, the name of one of several labels.
    """
    side = max(0.32 * len(classes) + 2, 5.5)
    figure = create_figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [str(name) for name in classes]
    axes.set(xlabel="prediction", ylabel="truth")
    axes.set_title(label, parse_math=False)
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0, parse_math=False)
    axes.set_yticks(range(len(names)), names, parse_math=False)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path, 120)


def plot_calibration(bins: CalibrationBins, error: float, path: Path) -> None:
    """Plots the share of correct predictions by their probability; on the diagonal both agree."""
    figure = create_figure(figsize=(5, 5), layout="constrained")
    accuracy_axes, count_axes = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    num_bins = len(bins.counts)
    centres = (np.arange(num_bins) + 0.5) / num_bins
    accuracy_axes.bar(centres, np.nan_to_num(bins.accuracy), width=0.9 / num_bins, color=_BLUE)
    accuracy_axes.plot([0, 1], [0, 1], color=_GREY, ls="--")
    accuracy_axes.set(
        ylabel="share of correct predictions", ylim=(0, 1), title=f"expected calibration error {error:.3f}"
    )
    count_axes.bar(centres, bins.counts / max(bins.counts.sum(), 1), width=0.9 / num_bins, color=_GREY)
    count_axes.set(xlabel="predicted probability", ylabel="share of rows", xlim=(0, 1))
    save_figure(figure, path, 120)


def plot_predictions(truth_N: np.ndarray, predictions_N: np.ndarray, path: Path) -> None:
    """Plots predictions against true values, in the units of the label; on the diagonal both agree."""
    figure = create_figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    values = np.concatenate([truth_N, predictions_N])
    limits = [float(values.min()), float(values.max())]
    if len(truth_N) > _MAX_POINTS:
        axes.hexbin(truth_N, predictions_N, gridsize=60, bins="log", mincnt=1, cmap="Blues")
    else:
        axes.scatter(truth_N, predictions_N, s=9, alpha=0.5, color=_BLUE, linewidths=0)
    axes.plot(limits, limits, color=_GREY, ls="--")
    axes.set(xlabel="truth", ylabel="prediction", aspect="equal")
    save_figure(figure, path, 120)


def plot_images(x_NCHW: np.ndarray, captions: Sequence[str], path: Path) -> None:
    """Plots encoded images with a caption, each scaled to its own contrast."""
    num_columns = min(len(x_NCHW), 6)
    num_rows = -(-len(x_NCHW) // num_columns)
    figure = create_figure(figsize=(1.8 * num_columns, 2.1 * num_rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(num_rows, num_columns)).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, x_CHW, caption in zip(grid, x_NCHW, captions, strict=False):
        _draw_image(axes, x_CHW)
        axes.set_title(caption, fontsize=8, parse_math=False)
    save_figure(figure, path, 120)


def _draw_image(axes: Axes, x_CHW: np.ndarray) -> None:
    low, high = float(x_CHW.min()), float(x_CHW.max())
    image = (x_CHW - low) / max(high - low, 1e-9)
    if len(image) == 3:
        axes.imshow(image.transpose(1, 2, 0))
    else:
        axes.imshow(image[0], cmap="gray")
