"""Pictures of a training run, as PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.training import Epoch


def draw_loss(epochs: Sequence[Epoch], path: Path) -> None:
    """Loss of the training and validation part, and validation accuracy, over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    left = figure.subplots()
    numbers = [epoch.number for epoch in epochs]
    left.plot(numbers, [epoch.train_loss for epoch in epochs], color="#1f77b4", label="training loss")
    left.plot(numbers, [epoch.val_loss for epoch in epochs], color="#d62728", label="validation loss")
    left.set(xlabel="epoch", ylabel="cross entropy (nats)", yscale="log")
    right = left.twinx()
    right.plot(numbers, [epoch.val_accuracy * 100 for epoch in epochs], color="#7f7f7f", ls="--", label="accuracy")
    right.set(ylabel="validation accuracy (%)")
    left.legend(handles=[*left.lines, *right.lines], loc="center right", frameon=False)
    figure.savefig(path, dpi=120)


def draw_confusion(counts: np.ndarray, classes: Sequence[object], path: Path) -> None:
    """Counts (K, K) as a heat map; the diagonal is what was answered rightly."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="truth")
    axes.set_xticks(range(len(classes)), [str(one) for one in classes])
    axes.set_yticks(range(len(classes)), [str(one) for one in classes])
    if len(classes) <= 30:
        for row, column in zip(*np.nonzero(counts), strict=True):
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8)
    figure.savefig(path, dpi=120)
