"""Pictures of a training run, as PNG files.

Shapes: N rows, K classes, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.records.tensor_layout import Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from bloomery.models.evaluation.calibration import CalibrationBins
    from bloomery.models.training.loop import EpochResult

MOST_DRAWN_CLASSES = 30
_COUNTED_POINTS = 2_000  # beyond this many points their density is drawn
_BLUE, _RED, _GREY = "#1f77b4", "#d62728", "#7f7f7f"


def plot_training_curves(epochs: Sequence[EpochResult], task: Task, unit: float, path: Path) -> None:
    """Loss of the training and validation part, and the validation score, over the epochs.

    A regression's score is drawn in the label's units, of which `unit` makes one standard unit.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    numbers = [epoch.number for epoch in epochs]
    left.plot(numbers, [epoch.train_loss for epoch in epochs], color=_BLUE, label="training loss")
    left.plot(numbers, [epoch.val_loss for epoch in epochs], color=_RED, label="validation loss")
    is_classes = task == "classification"
    left.set(xlabel="epoch", ylabel="cross entropy (nats)" if is_classes else "error (standard units)", yscale="log")
    right = left.twinx()
    scores = [epoch.val_score * (100 if is_classes else unit) for epoch in epochs]
    right.plot(numbers, scores, color=_GREY, ls="--", label="accuracy" if is_classes else "RMSE")
    right.set(ylabel="validation accuracy (%)" if is_classes else "validation RMSE (units of the label)")
    figure.legend(handles=[*left.lines, *right.lines], loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=120)


def plot_confusion_matrix(counts: np.ndarray, classes: Sequence[object], path: Path) -> None:
    """Counts (K, K), of at most `MOST_DRAWN_CLASSES` classes, as a heat map; the diagonal is answered rightly."""
    from matplotlib.figure import Figure

    side = max(0.32 * len(classes) + 2, 5.5)
    figure = Figure(figsize=(side + 0.5, side), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [str(one) for one in classes]
    axes.set(xlabel="answer", ylabel="truth")
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 3 else 0)
    axes.set_yticks(range(len(names)), names)
    for row, column in zip(*np.nonzero(counts), strict=True):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)


def plot_calibration(found: CalibrationBins, error: float, path: Path) -> None:
    """How often answers are right, by their probability; on the diagonal both agree."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    num_steps = len(found.counts)
    places = (np.arange(num_steps) + 0.5) / num_steps
    above.bar(places, np.nan_to_num(found.accuracy), width=0.9 / num_steps, color=_BLUE)
    above.plot([0, 1], [0, 1], color=_GREY, ls="--")
    above.set(ylabel="share of right answers", ylim=(0, 1), title=f"expected calibration error {error:.3f}")
    below.bar(places, found.counts / max(found.counts.sum(), 1), width=0.9 / num_steps, color=_GREY)
    below.set(xlabel="probability of the answer", ylabel="share of rows", xlim=(0, 1))
    figure.savefig(path, dpi=120)


def plot_predictions(truth_N: np.ndarray, answers_N: np.ndarray, path: Path) -> None:
    """Figures against what was answered, in the units of the label; on the diagonal both agree."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5.5), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([truth_N, answers_N])
    ends = [float(both.min()), float(both.max())]
    if len(truth_N) > _COUNTED_POINTS:
        axes.hexbin(truth_N, answers_N, gridsize=60, bins="log", mincnt=1, cmap="Blues")
    else:
        axes.scatter(truth_N, answers_N, s=9, alpha=0.5, color=_BLUE, linewidths=0)
    axes.plot(ends, ends, color=_GREY, ls="--")
    axes.set(xlabel="truth", ylabel="answer", aspect="equal")
    figure.savefig(path, dpi=120)


def plot_images(x_NCHW: np.ndarray, captions: Sequence[str], path: Path) -> None:
    """Encoded images, each with the contrast of its own, with a line below."""
    from matplotlib.figure import Figure

    num_columns = min(len(x_NCHW), 6)
    num_rows = -(-len(x_NCHW) // num_columns)
    figure = Figure(figsize=(1.8 * num_columns, 2.1 * num_rows), layout="constrained")
    places = np.atleast_1d(figure.subplots(num_rows, num_columns)).ravel()
    for axes in places:
        axes.set_axis_off()
    for axes, x_CHW, caption in zip(places, x_NCHW, captions, strict=False):
        _draw_image(axes, x_CHW)
        axes.set_title(caption, fontsize=8)
    figure.savefig(path, dpi=120)


def _draw_image(axes: Axes, x_CHW: np.ndarray) -> None:
    low, high = float(x_CHW.min()), float(x_CHW.max())
    shown = (x_CHW - low) / max(high - low, 1e-9)
    if len(shown) == 3:
        axes.imshow(shown.transpose(1, 2, 0))
    else:
        axes.imshow(shown[0], cmap="gray")
