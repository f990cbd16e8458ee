"""Drift as a picture: how far every distribution is from the reference, and the farthest ones beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.monitoring import Drift, Findings
from bloomery.data_contracts.odcs.distributions import reference_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _RED, _GREY = "#1f77b4", "#d62728", "#7f7f7f"
_MOST_BARS = 30
_MOST_DRAWN = 6
_MOST_VALUES = 12  # of a column of names, the most frequent ones
_NUM_STEPS = 10  # that numbers are drawn in


def draw_drifts(findings: Findings, limit: float, path: Path) -> None:
    """PSI of each distribution against its limit, and the usual and the found shares of the farthest. PNG."""
    from matplotlib.figure import Figure

    shown = findings.drifts[:_MOST_BARS]
    drawn = shown[:_MOST_DRAWN]
    num_rows = -(-len(drawn) // 3)
    bars_height = 0.28 * len(shown) + 1.2
    figure = Figure(figsize=(10, bars_height + 2.4 * num_rows), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(bars_height, 2.4 * num_rows))
    above, below = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    _draw_bars(above.subplots(), shown, limit)
    for axes, drift in zip(np.atleast_1d(below.subplots(num_rows, 3)).ravel(), [*drawn, None, None], strict=False):
        if drift is None:
            axes.set_axis_off()
        else:
            _draw_shares(axes, drift)
    figure.savefig(path, dpi=110)


def _draw_bars(axes: Axes, drifts: Sequence[Drift], limit: float) -> None:
    places = np.arange(len(drifts))[::-1]
    colours = [_RED if drift.is_drifted else _BLUE if drift.counts else _GREY for drift in drifts]
    axes.barh(places, [drift.psi for drift in drifts], color=colours, height=0.7)
    axes.scatter([drift.noise for drift in drifts], places, marker="|", color="black", zorder=3, label="by chance")
    axes.axvline(limit, color=_RED, ls="--", lw=1, label="limit")
    axes.set_yticks(places, [drift.name for drift in drifts])
    axes.set(xlabel="population stability index", xlim=(0, max(limit * 1.5, *(drift.psi * 1.05 for drift in drifts))))
    axes.legend(frameon=False, loc="lower right")


def _draw_shares(axes: Axes, drift: Drift) -> None:
    names, usual, found = _in_steps(drift) if drift.usual.edges is not None else _by_value(drift)
    places = np.arange(len(names))
    axes.bar(places - 0.2, usual, width=0.4, color=_GREY, label="usual")
    axes.bar(places + 0.2, found, width=0.4, color=_RED if drift.is_drifted else _BLUE, label="found")
    axes.set_xticks(places, names, rotation=60, fontsize=6, ha="right", rotation_mode="anchor")
    of_what = "" if drift.measure == "value" else f" ({drift.measure})"
    axes.set_title(f"{drift.name}{of_what}: PSI {drift.psi:.2f}", fontsize=8)
    axes.tick_params(axis="y", labelsize=6)
    axes.legend(frameon=False, fontsize=6)


def _in_steps(drift: Drift) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Adjoining cells put together to some ten, and what is missing."""
    edges = drift.usual.edges or ()
    begins = np.unique(np.linspace(0, len(edges), min(_NUM_STEPS, len(edges) + 1), endpoint=False).astype(int))
    first = f"< {edges[begins[1] - 1]:.3g}" if len(begins) > 1 else "any"
    names = [first, *(f"≥ {edges[at - 1]:.3g}" for at in begins[1:])]
    usual, found = (
        np.concatenate([np.add.reduceat(np.array(shares[:-2]), begins), [sum(shares[-2:])]])
        for shares in (drift.usual.all_shares, reference_of(drift.found).all_shares)
    )
    return [*names, "missing"], usual, found


def _by_value(drift: Drift) -> tuple[list[str], np.ndarray, np.ndarray]:
    usual, found = np.array(drift.usual.all_shares), np.array(reference_of(drift.found).all_shares)
    names = [*map(str, drift.usual.values or ()), "other", "missing"]
    order = np.argsort(-np.maximum(usual, found), kind="stable")[:_MOST_VALUES]
    return [names[at][:14] for at in order], usual[order], found[order]
