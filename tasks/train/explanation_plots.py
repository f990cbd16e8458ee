"""Plots explanations of predictions: PNG files, and an HTML page for text.

Red supports the prediction, blue opposes it. Shapes: B rows, C channels, H height, W width, T steps, F columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bloomery.tasks.evaluation.figures import create_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_COLOR_MAP = "RdBu_r"
_RED_RGB, _BLUE_RGB = "178,24,43", "33,102,172"
_MAX_BARS = 20
_MAX_ROW_BARS = 8  # of a single row
_MAX_TICK_LABELS = 30
_MAX_LABEL_LENGTH = 28
_DPI = 110


def plot_image_rows(x_BCHW: np.ndarray, weights_BCHW: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Plots each image, and beside it the image in grey below the weights of its pixels."""
    height = max(1.9 * x_BCHW.shape[2] / x_BCHW.shape[3], 0.9) + 0.45
    figure, grid = _make_grid(len(titles), 2, 3.9, height)
    for row, title in enumerate(titles):
        left, right = grid[row]
        image_CHW = x_BCHW[row]
        if len(image_CHW) == 3:
            low, high = image_CHW.min(), image_CHW.max()
            left.imshow(((image_CHW - low) / max(high - low, 1e-12)).transpose(1, 2, 0), aspect="auto")
        else:
            left.imshow(image_CHW.mean(0), cmap="gray", aspect="auto")
        right.imshow(image_CHW.mean(0), cmap="gray", aspect="auto", alpha=0.35)
        weights_HW = weights_BCHW[row].sum(0)
        limit = float(np.abs(weights_HW).max()) or 1.0
        right.imshow(weights_HW, cmap=_COLOR_MAP, vmin=-limit, vmax=limit, alpha=0.75, aspect="auto")
        left.set_title(title, fontsize=8, parse_math=False, loc="left")
        for axes in (left, right):
            axes.set(xticks=[], yticks=[])
    save_figure(figure, path, _DPI)


def plot_sequence_rows(
    weights_BTF: np.ndarray, columns: Sequence[str], titles: Sequence[str], steps_per_group: int, path: Path
) -> None:
    """Plots the weight of each column at each step, or group of `steps_per_group` steps; time runs to the right."""
    height = 0.22 * min(len(columns), _MAX_TICK_LABELS) + 0.8
    figure, grid = _make_grid(len(titles), 1, 4.2, height)
    for row, title in enumerate(titles):
        (axes,) = grid[row]
        limit = float(np.abs(weights_BTF[row]).max()) or 1.0
        _plot_steps(axes, weights_BTF[row], columns, steps_per_group, limit, _COLOR_MAP)
        axes.set_title(title, fontsize=8, parse_math=False, loc="left")
    save_figure(figure, path, _DPI)


def plot_column_rows(
    weights_BF: np.ndarray, labels: Sequence[Sequence[str]], titles: Sequence[str], path: Path
) -> None:
    """Plots the columns with the largest weights of each row as bars; `labels` names each row's columns."""
    figure, grid = _make_grid(len(titles), 1, 4.2, 0.2 * min(weights_BF.shape[1], _MAX_ROW_BARS) + 0.7)
    for row, title in enumerate(titles):
        (axes,) = grid[row]
        order = np.argsort(-np.abs(weights_BF[row]), kind="stable")[:_MAX_ROW_BARS][::-1]
        values = weights_BF[row][order]
        axes.barh(range(len(order)), values, color=["#b2182b" if value > 0 else "#2166ac" for value in values])
        names = [_shorten(labels[row][column]) for column in order]
        axes.set_yticks(range(len(order)), names, fontsize=7, parse_math=False)
        axes.axvline(0, color="black", lw=0.6)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(title, fontsize=8, parse_math=False, loc="left")
    save_figure(figure, path, _DPI)


def plot_importance(weights: np.ndarray, columns: Sequence[str], steps_per_group: int, path: Path) -> None:
    """Plots mean weights: of columns (F,) as bars; of pixels (H, W), or with columns of steps (T, F), as a map."""
    if weights.ndim == 1:
        order = np.argsort(-weights, kind="stable")[:_MAX_BARS][::-1]
        figure = create_figure(figsize=(6, 0.24 * len(order) + 0.9), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(order)), weights[order], color="#4d4d4d")
        names = [_shorten(columns[column]) for column in order]
        axes.set_yticks(range(len(order)), names, fontsize=8, parse_math=False)
        axes.set_xlabel("mean absolute weight", fontsize=8)
    else:
        height, width = weights.shape
        inches = (
            0.25 * min(len(columns), _MAX_TICK_LABELS) + 1.2 if columns else min(max(4.9 * height / width, 1.0), 9.0)
        )
        figure = create_figure(figsize=(6, inches), layout="constrained")
        axes = figure.subplots()
        if columns:
            image = _plot_steps(axes, weights, columns, steps_per_group, None, "Greys")
        else:
            image = axes.imshow(weights, cmap="Greys", vmin=0, aspect="auto")
            axes.set(xticks=[], yticks=[])
        figure.colorbar(image).set_label("mean absolute weight", fontsize=8)
    save_figure(figure, path, _DPI)


class _Word(NamedTuple):
    """A word as the page shows it; `share` is its weight as a share of the largest one in the text, with its sign."""

    text: str
    rgb: str
    opacity: float
    share: float


def write_text_page(
    texts: Sequence[tuple[str, Sequence[str], np.ndarray]], vocabulary: Sequence[tuple[str, int, float]], path: Path
) -> None:
    """Writes an HTML page with each text, its words coloured by their weights, and the most important words overall.

    Args:
        texts: title, words and their weights of each row.
        vocabulary: word, number of occurrences in the rows, and mean absolute weight.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # words come from users' data
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("explanation_plots.html.jinja")
    coloured = [(title, list(_color_words(words, weights))) for title, words, weights in texts]
    path.write_text(template.render(texts=coloured, vocabulary=vocabulary), encoding="utf-8")


def _color_words(words: Sequence[str], weights: np.ndarray) -> Iterator[_Word]:
    limit = float(np.abs(weights).max(initial=0)) or 1.0
    for word, weight in zip(words, weights, strict=True):
        share = float(weight) / limit
        yield _Word(word, _RED_RGB if share > 0 else _BLUE_RGB, abs(share) * 0.75, share)


def _plot_steps(
    axes: Axes,
    weights_TF: np.ndarray,
    columns: Sequence[str],
    steps_per_group: int,
    limit: float | None,
    color_map: str,
) -> AxesImage:
    low = 0.0 if limit is None else -limit
    num_groups, num_columns = len(weights_TF), len(columns)
    extent = (-0.5, num_groups * steps_per_group - 0.5, num_columns - 0.5, -0.5)
    image = axes.imshow(weights_TF.T, cmap=color_map, vmin=low, vmax=limit, aspect="auto", extent=extent)
    ticks = list(range(0, num_columns, math.ceil(num_columns / _MAX_TICK_LABELS)))
    axes.set_yticks(ticks, [_shorten(columns[column]) for column in ticks], fontsize=7, parse_math=False)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("step", fontsize=7)
    return image


def _make_grid(num_rows: int, axes_per_row: int, width: float, height: float) -> tuple[Figure, list[list[Axes]]]:
    """A figure with `axes_per_row` axes for each of `num_rows` rows of data, two rows side by side; sizes in inches."""
    grid_columns = min(num_rows, 2)
    grid_rows = math.ceil(num_rows / grid_columns)
    figure = create_figure(figsize=(width * grid_columns, height * grid_rows + 0.3), layout="constrained")
    figure.supxlabel("weights: red supports the prediction, blue opposes it", fontsize=8)
    axes = figure.subplots(grid_rows, grid_columns * axes_per_row, squeeze=False).ravel().tolist()
    for unused in axes[num_rows * axes_per_row :]:
        unused.set_axis_off()
    return figure, [axes[row * axes_per_row : (row + 1) * axes_per_row] for row in range(num_rows)]


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_LABEL_LENGTH else f"{name[: _MAX_LABEL_LENGTH - 1]}…"
