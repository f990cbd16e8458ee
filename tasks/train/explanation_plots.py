"""Pictures of why a network answers as it does: PNG files, and pages for text.

Red speaks for the answer, blue against it. Shapes: B rows, C channels, H height, W width, T steps, F columns.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_COLORS = "RdBu_r"
_MOST_BARS = 20
_FEW_BARS = 8  # of a single row
_LETTERS = 28  # of a name, beside its bar
_STYLE = (
    "<meta charset='utf-8'><style>body{font:15px/1.9 sans-serif;max-width:60em;margin:2em auto}"
    "p span{padding:.15em 0;border-radius:.2em;white-space:pre-wrap}h2{font-size:1em;margin:1.4em 0 .2em}"
    "td,th{padding:.1em 1em .1em 0;text-align:left}</style>"
)


def plot_image_rows(x_BCHW: np.ndarray, weights_BCHW: np.ndarray, titles: Sequence[str], path: Path) -> None:
    """Each image, and beside it the same image in grey under the weights of its pixels."""
    tall = max(1.9 * x_BCHW.shape[2] / x_BCHW.shape[3], 0.9) + 0.45
    figure, places = _grid(len(titles), 2, 3.9, tall)
    for row, title in enumerate(titles):
        left, right = places[row]
        image_CHW = x_BCHW[row]
        if len(image_CHW) == 3:
            low, high = image_CHW.min(), image_CHW.max()
            left.imshow(((image_CHW - low) / max(high - low, 1e-12)).transpose(1, 2, 0), aspect="auto")
        else:
            left.imshow(image_CHW.mean(0), cmap="gray", aspect="auto")
        right.imshow(image_CHW.mean(0), cmap="gray", aspect="auto", alpha=0.35)
        weights_HW = weights_BCHW[row].sum(0)
        most = float(np.abs(weights_HW).max()) or 1.0
        right.imshow(weights_HW, cmap=_COLORS, vmin=-most, vmax=most, alpha=0.75, aspect="auto")
        left.set_title(title, fontsize=8, parse_math=False, loc="left")
        for one in (left, right):
            one.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def plot_sequence_rows(
    weights_BTF: np.ndarray, columns: Sequence[str], titles: Sequence[str], steps_each: int, path: Path
) -> None:
    """The weight of each column at each step (or block of `steps_each` steps), time from left to right."""
    tall = 0.22 * min(len(columns), 30) + 0.8
    figure, places = _grid(len(titles), 1, 4.2, tall)
    for row, title in enumerate(titles):
        (axes,) = places[row]
        most = float(np.abs(weights_BTF[row]).max()) or 1.0
        _draw_steps(axes, weights_BTF[row], columns, steps_each, most, _COLORS)
        axes.set_title(title, fontsize=8, parse_math=False, loc="left")
    figure.savefig(path, dpi=110)


def plot_column_rows(
    weights_BF: np.ndarray, labels: Sequence[Sequence[str]], titles: Sequence[str], path: Path
) -> None:
    """The weightiest columns of each row as bars; `labels` names each row's columns."""
    figure, places = _grid(len(titles), 1, 4.2, 0.2 * min(weights_BF.shape[1], _FEW_BARS) + 0.7)
    for row, title in enumerate(titles):
        (axes,) = places[row]
        order = np.argsort(-np.abs(weights_BF[row]), kind="stable")[:_FEW_BARS][::-1]
        values = weights_BF[row][order]
        axes.barh(range(len(order)), values, color=["#b2182b" if value > 0 else "#2166ac" for value in values])
        names = [_short(labels[row][place]) for place in order]
        axes.set_yticks(range(len(order)), names, fontsize=7, parse_math=False)
        axes.axvline(0, color="black", lw=0.6)
        axes.tick_params(axis="x", labelsize=7)
        axes.set_title(title, fontsize=8, parse_math=False, loc="left")
    figure.savefig(path, dpi=110)


def plot_importance(weights: np.ndarray, columns: Sequence[str], steps_each: int, path: Path) -> None:
    """Mean weights: bars of columns (F,), or a map of pixels (H, W) or, with columns, of steps (T, F)."""
    from matplotlib.figure import Figure

    if weights.ndim == 1:
        order = np.argsort(-weights, kind="stable")[:_MOST_BARS][::-1]
        figure = Figure(figsize=(6, 0.24 * len(order) + 0.9), layout="constrained")
        axes = figure.subplots()
        axes.barh(range(len(order)), weights[order], color="#4d4d4d")
        axes.set_yticks(range(len(order)), [_short(columns[place]) for place in order], fontsize=8, parse_math=False)
        axes.set_xlabel("mean weight, whatever its sign", fontsize=8)
    else:
        height, width = weights.shape
        tall = 0.25 * min(len(columns), 30) + 1.2 if columns else min(max(4.9 * height / width, 1.0), 9.0)
        figure = Figure(figsize=(6, tall), layout="constrained")
        axes = figure.subplots()
        if columns:
            drawn = _draw_steps(axes, weights, columns, steps_each, None, "Greys")
        else:
            drawn = axes.imshow(weights, cmap="Greys", vmin=0, aspect="auto")
            axes.set(xticks=[], yticks=[])
        figure.colorbar(drawn).set_label("mean weight", fontsize=8)
    figure.savefig(path, dpi=110)


def write_text_page(
    texts: Sequence[tuple[str, Sequence[str], np.ndarray]], known: Sequence[tuple[str, int, float]], path: Path
) -> None:
    """A page with each text in the colours of its words' weights, and the words that matter over many rows.

    Args:
        texts: title, words and their weights of each row.
        known: word, how often it stands in the rows, and the mean size of its weight.
    """
    lines = ["<!doctype html>", _STYLE, "<h1>Words and their weights</h1><p>red: for the answer, blue: against it</p>"]
    for title, words, weights in texts:
        most = float(np.abs(weights).max(initial=0)) or 1.0
        spans = "".join(_span(word, float(weight) / most) for word, weight in zip(words, weights, strict=True))
        lines.append(f"<h2>{html.escape(title)}</h2><p>{spans}</p>")
    lines.append("<h1>Over many rows</h1><table><tr><th>word<th>times<th>mean weight, whatever its sign")
    lines += [f"<tr><td>{html.escape(word)}<td>{count}<td>{weight:.4g}" for word, count, weight in known]
    path.write_text("\n".join([*lines, "</table>"]), encoding="utf-8")


def _span(word: str, share: float) -> str:
    color = "178,24,43" if share > 0 else "33,102,172"
    style = f"background:rgba({color},{abs(share) * 0.75:.2f})"
    return f"<span style='{style}' title='{share:+.2f}'>{html.escape(word)}</span>"


def _draw_steps(
    axes: Axes, weights_TF: np.ndarray, columns: Sequence[str], steps_each: int, most: float | None, colors: str
) -> AxesImage:
    low = 0.0 if most is None else -most
    steps, width = len(weights_TF), len(columns)
    extent = (-0.5, steps * steps_each - 0.5, width - 0.5, -0.5)
    drawn = axes.imshow(weights_TF.T, cmap=colors, vmin=low, vmax=most, aspect="auto", extent=extent)
    shown = range(0, width, math.ceil(width / 30))
    axes.set_yticks(list(shown), [_short(columns[place]) for place in shown], fontsize=7, parse_math=False)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("step", fontsize=7)
    return drawn


def _grid(num_rows: int, per_row: int, wide: float, tall: float) -> tuple[Figure, list[list[Axes]]]:
    """Places for `num_rows` rows of the data, two side by side, each of `per_row` axes."""
    from matplotlib.figure import Figure

    across = min(num_rows, 2)
    down = math.ceil(num_rows / across)
    figure = Figure(figsize=(wide * across, tall * down + 0.3), layout="constrained")
    figure.supxlabel("weights: red for the answer, blue against it", fontsize=8)
    places = figure.subplots(down, across * per_row, squeeze=False).ravel().tolist()
    for unused in places[num_rows * per_row :]:
        unused.set_axis_off()
    return figure, [places[row * per_row : (row + 1) * per_row] for row in range(num_rows)]


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
