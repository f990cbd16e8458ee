"""Plot of drift: the PSI of every distribution, and the most drifted ones compared with their reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bloomery.data_contracts.monitoring import Drift, MonitoringReport
from bloomery.data_contracts.odcs.distributions import reference_column
from bloomery.tasks.evaluation.figures import create_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _RED, _GREY = "#1f77b4", "#d62728", "#7f7f7f"
_MAX_BARS = 30
_MAX_DISTRIBUTIONS = 6
_MAX_VALUES = 12  # of a category column, the most frequent ones
_NUM_INTERVALS = 10  # of a number column


def plot_drift(report: MonitoringReport, limit: float, path: Path) -> None:
    """Writes a PNG: the PSI of each distribution with its limit, and reference and current shares of the largest."""
    bars = report.drifts[:_MAX_BARS]
    distributions = bars[:_MAX_DISTRIBUTIONS]
    num_rows = -(-len(distributions) // 3)
    bars_height = 0.28 * len(bars) + 1.2
    figure = create_figure(figsize=(10, bars_height + 2.4 * num_rows), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(bars_height, 2.4 * num_rows))
    top, bottom = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    _plot_bars(top.subplots(), bars, limit)
    all_axes = np.atleast_1d(bottom.subplots(num_rows, 3)).ravel()
    for axes, drift in zip(all_axes, [*distributions, None, None], strict=False):
        if drift is None:
            axes.set_axis_off()
        else:
            _plot_shares(axes, drift)
    save_figure(figure, path, 110)


def _plot_bars(axes: Axes, drifts: Sequence[Drift], limit: float) -> None:
    positions = np.arange(len(drifts))[::-1]
    colours = [_RED if drift.is_drifted else _BLUE if drift.can_alert else _GREY for drift in drifts]
    axes.barh(positions, [drift.psi for drift in drifts], color=colours, height=0.7)
    axes.scatter(
        [drift.noise_psi for drift in drifts], positions, marker="|", color="black", zorder=3, label="by chance"
    )
    axes.axvline(limit, color=_RED, ls="--", lw=1, label="limit")
    axes.set_yticks(positions, [drift.name for drift in drifts], parse_math=False)
    axes.set(xlabel="population stability index", xlim=(0, max(limit * 1.5, *(drift.psi * 1.05 for drift in drifts))))
    axes.legend(frameon=False, loc="lower right")


def _plot_shares(axes: Axes, drift: Drift) -> None:
    names, reference, current = _interval_shares(drift) if drift.reference.edges is not None else _value_shares(drift)
    positions = np.arange(len(names))
    axes.bar(positions - 0.2, reference, width=0.4, color=_GREY, label="reference")
    axes.bar(positions + 0.2, current, width=0.4, color=_RED if drift.is_drifted else _BLUE, label="current")
    axes.set_xticks(positions, names, rotation=60, fontsize=6, ha="right", rotation_mode="anchor", parse_math=False)
    measure = "" if drift.measure == "value" else f" ({drift.measure})"
    axes.set_title(f"{drift.name}{measure}: PSI {drift.psi:.2f}", fontsize=8, parse_math=False)
    axes.tick_params(axis="y", labelsize=6)
    axes.legend(frameon=False, fontsize=6)


def _interval_shares(drift: Drift) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, reference and current shares of about ten intervals, each several adjacent bins, and of missing values."""
    edges = drift.reference.edges or ()
    starts = np.unique(np.linspace(0, len(edges), min(_NUM_INTERVALS, len(edges) + 1), endpoint=False).astype(int))
    first = f"< {edges[starts[1] - 1]:.3g}" if len(starts) > 1 else "any"
    names = [first, *(f"≥ {edges[start - 1]:.3g}" for start in starts[1:])]
    reference, current = (
        np.concatenate([np.add.reduceat(np.array(shares[:-2]), starts), [sum(shares[-2:])]])
        for shares in (drift.reference.all_shares, reference_column(drift.observed).all_shares)
    )
    return [*names, "missing"], reference, current


def _value_shares(drift: Drift) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, reference and current shares of the most frequent values."""
    reference, current = np.array(drift.reference.all_shares), np.array(reference_column(drift.observed).all_shares)
    names = [*map(str, drift.reference.values or ()), "other", "missing"]
    order = np.argsort(-np.maximum(reference, current), kind="stable")[:_MAX_VALUES]
    return [names[index][:14] for index in order], reference[order], current[order]
