"""Plots the score of candidates against each of their costs, with the Pareto front and the budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bloomery.data_contracts.records.records import Candidate, Candidates
from bloomery.data_contracts.records.score_format import degradation_name, format_degradation, format_score_value
from bloomery.data_contracts.records.scores import Score
from bloomery.models.compression.budget import Budget
from bloomery.models.compression.pareto_front import pareto_front
from bloomery.tasks.choose.budget_verdicts import Decision, find_baseline
from bloomery.tasks.evaluation.figures import create_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_CHOSEN, _PASSED, _OVER = "#1a7f37", "#1f5fa8", "#8c8c8c"
_LIMIT, _INK = "#c62828", "#333333"
_MAX_LIMIT_FACTOR = 3  # times the largest value: a limit beyond it is drawn at the edge
_WIDE_AXIS_FACTOR = 4  # times the smallest value: a narrower axis needs fine ticks
_COARSE_TICKS, _FINE_TICKS = (1, 2, 5), (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
_MAX_DEPTH_FACTOR = 6  # times the limit of the degradation: worse candidates are drawn at the edge
# Offsets of a label from its point, in points to the right and up.
_LABEL_OFFSETS = [
    (sign * right, up)
    for up in (8, -8, 22, -22, 38, -38, 56, -56, 76, -76)
    for sign, right in ((1, 9), (-1, 9), (1, 40), (-1, 40))
]


class _Point(NamedTuple):
    """A candidate in one panel; `y` is in hundredths, and higher is better."""

    name: str
    label: str
    color: str
    is_chosen: bool
    x: float
    x_end: float  # where a bar to the right ends
    y: float
    y_low: float
    y_high: float


class _Panel(NamedTuple):
    """The candidates by one of their costs; lower is better."""

    cost: str
    unit: str
    points: list[_Point]
    limit: float | None


def plot_pareto_front(candidates: Candidates, budget: Budget, decision: Decision, path: Path) -> None:
    """Plots a PNG with panels for size, time and, where it was measured, energy, on log scales; up and left are better.

    Vertical bars are 95% intervals of the paired difference from fp32; horizontal bars reach from the median to the
    percentile that the budget limits. A candidate within the budget has no bar that crosses a limit.
    """
    score = candidates.trained.score
    max_degradation = 100 * (budget.error_rise if score.is_error else budget.accuracy_drop)
    panels = _make_panels(candidates, budget, decision)
    figure = create_figure(figsize=(6 * len(panels), 5.6), layout="constrained", dpi=120)
    axes = figure.subplots(1, len(panels), sharey=True)
    first, last = axes[0], axes[-1]
    _set_height(first, panels[0].points, max_degradation)
    for panel_axes, panel in zip(axes, panels, strict=True):
        _draw_panel(panel_axes, panel, max_degradation)
    first.set_ylabel(f"{score.title} against fp32 ({'%; up is lower' if score.is_error else 'points'})", color=_INK)
    if score.is_error:  # an error that rises is drawn downwards
        first.yaxis.set_major_formatter(lambda y, _: f"{-y:+.4g}" if y else "0")
    limit_text = f"{degradation_name(score)} of {format_degradation(score, max_degradation / 100)}"
    first.annotate(
        f"limit: a {limit_text}", (1, -max_degradation), (-4, -3), xycoords=("axes fraction", "data"),
        textcoords="offset points", color=_LIMIT, fontsize=8, ha="right", va="top",
    )  # fmt: skip
    _add_scores(last, find_baseline(candidates).score.value, score)
    _draw_legend(figure, decision)
    _place_labels(figure, [(panel_axes, panel.points) for panel_axes, panel in zip(axes, panels, strict=True)])
    figure.savefig(path)


def _make_panels(record: Candidates, budget: Budget, decision: Decision) -> list[_Panel]:
    """One panel for each cost."""
    candidates, score, limit = record.candidates, record.trained.score, budget.latency_ms

    def points(costs: list[float], ends: list[float]) -> list[_Point]:
        rows = zip(candidates, costs, ends, strict=True)
        return [_make_point(candidate, decision, score, cost, end) for candidate, cost, end in rows]

    sizes = [candidate.size_bytes / 1000 for candidate in candidates]
    max_bytes = None if budget.size_bytes is None else budget.size_bytes / 1000
    percentile = 50 if limit is None else limit.percentile
    latencies = [candidate.latency_at(budget.batch_size) for candidate in candidates]
    unit, scale = ("ms", 1) if max(latency.p50_ms for latency in latencies) >= 1 else ("µs", 1000)
    medians, ends = (
        [latency.percentile_ms(quantile) * scale for latency in latencies] for quantile in (50, percentile)
    )
    max_latency = None if limit is None else limit.value * scale
    rows = "one row" if budget.batch_size == 1 else f"{budget.batch_size} rows"
    bars = "median" if percentile == 50 else f"median, with a bar to the {percentile}th percentile"
    panels = [
        _Panel("size of the ONNX file (kB)", "kB", points(sizes, sizes), max_bytes),
        _Panel(f"time of {rows} ({unit}): {bars}", unit, points(medians, ends), max_latency),
    ]
    energies = [candidate.energy.p50_j * 1000 for candidate in candidates if candidate.energy is not None]
    if len(energies) == len(candidates):
        panels.append(_Panel(f"energy of {rows} (mJ): median", "mJ", points(energies, energies), None))
    return panels


def _make_point(candidate: Candidate, decision: Decision, score: Score, x: float, x_end: float) -> _Point:
    is_chosen = decision.best is not None and candidate.name == decision.best.name
    passed = next(verdict.passed for verdict in decision.verdicts if verdict.name == candidate.name)
    worse = candidate.degradation
    return _Point(
        name=candidate.name,
        label=f"{candidate.name}\n{format_score_value(score, candidate.score.value)}",
        color=_CHOSEN if is_chosen else _PASSED if passed else _OVER,
        is_chosen=is_chosen,
        x=x,
        x_end=max(x_end, x),
        y=-100 * worse.value,
        y_low=-100 * worse.high,
        y_high=-100 * worse.low,
    )


def _set_height(axes: Axes, points: Sequence[_Point], max_degradation: float) -> None:
    """Fits the axis to all bars, but not much deeper than the limit."""
    floor = -_MAX_DEPTH_FACTOR * max_degradation
    low = min(min(max(point.y_low, floor) for point in points), -max_degradation)
    high = max(0.0, *(point.y_high for point in points))
    margin = 0.14 * (high - low)
    axes.set_ylim(low - margin, high + margin)


def _draw_panel(axes: Axes, panel: _Panel, max_degradation: float) -> None:
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points, limit = panel.points, panel.limit
    axes.set_xlabel(panel.cost, color=_INK)
    bottom, _ = axes.get_ylim()
    ends = [end for point in points for end in (point.x, point.x_end)]
    if limit is not None and max(ends) / _MAX_LIMIT_FACTOR < limit < max(ends) * _MAX_LIMIT_FACTOR:
        ends.append(limit)
    smallest, largest = min(ends), max(ends)
    margin = max((largest / smallest) ** 0.16, 1.25)
    axes.set_xscale("log")
    axes.set_xlim(smallest / margin, largest * margin)
    axes.xaxis.set_major_locator(
        LogLocator(subs=_COARSE_TICKS if largest / smallest > _WIDE_AXIS_FACTOR else _FINE_TICKS)
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.axhspan(bottom, -max_degradation, color=_LIMIT, alpha=0.05, lw=0)
    axes.axhline(-max_degradation, color=_LIMIT, lw=1.1, ls=(0, (5, 3)))
    if limit is not None:
        start, end = axes.get_xlim()
        line_x = min(max(limit, start), end)
        axes.axvspan(line_x, end, color=_LIMIT, alpha=0.05, lw=0)
        axes.axvline(line_x, color=_LIMIT, lw=1.1, ls=(0, (5, 3)))
        text = f"limit: {limit:g} {panel.unit}"
        if line_x != limit:
            text += f", far to the {'left' if limit < start else 'right'}"
        axes.annotate(
            text, (line_x, 1), (4 if limit < start else -4, -3), xycoords=("data", "axes fraction"),
            textcoords="offset points", color=_LIMIT, fontsize=8, rotation=90,
            ha="left" if limit < start else "right", va="top",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip
    _draw_front(axes, points)
    for point in points:
        is_deep = point.y < bottom
        y = bottom if is_deep else point.y
        axes.plot([point.x, point.x_end], [y, y], color=point.color, lw=1.2, alpha=0.6)
        axes.plot([point.x] * 2, [point.y_low, point.y_high], color=point.color, lw=1.2, alpha=0.6)
        marker = "v" if is_deep else "*" if point.is_chosen else "o"
        size = 17 if point.is_chosen else 8
        axes.plot(
            point.x, y, marker, color=point.color, ms=size, mec="white", mew=1, clip_on=False,
            zorder=4 if point.is_chosen else 3,
        )  # fmt: skip


def _draw_front(axes: Axes, points: Sequence[_Point]) -> None:
    """Draws the Pareto front: every point below its line is dominated by one to its left."""
    best = sorted(
        (points[position] for position in pareto_front([(point.x, -point.y) for point in points])),
        key=lambda point: point.x,
    )
    _, right = axes.get_xlim()
    bottom, _ = axes.get_ylim()
    ys = [max(point.y, bottom) for point in best]
    axes.step([*(point.x for point in best), right], [*ys, ys[-1]], where="post", color=_PASSED, lw=2, alpha=0.3)


def _add_scores(axes: Axes, baseline_score: float, score: Score) -> None:
    """Adds an axis with absolute scores on the right, beside the differences on the left."""
    unit = 100 if score.facts.is_share else 1
    # The score is linear in the difference; an error of 0 has no relative rise, so its slope is arbitrary.
    start, slope = unit * baseline_score, (-unit * (baseline_score or 1.0) / 100 if score.is_error else unit / 100)

    def to_score(difference: Any) -> Any:
        return start + slope * difference

    def to_difference(value: Any) -> Any:
        return (value - start) / slope

    scores = axes.secondary_yaxis("right", functions=(to_score, to_difference))
    scores.set_ylabel(f"{score.title}{' (%)' if score.facts.is_share else ''}", color=_INK)
    scores.spines["right"].set_visible(False)


def _draw_legend(figure: Figure, decision: Decision) -> None:
    from matplotlib.lines import Line2D

    def dot(color: str, marker: str, label: str, size: float) -> Line2D:
        return Line2D([], [], color=color, marker=marker, ls="", ms=size, mec="white", label=label)

    handles = [
        *([dot(_CHOSEN, "*", "chosen", 15)] if decision.best is not None else []),
        *([dot(_PASSED, "o", "within the budget", 8)] if any(verdict.passed for verdict in decision.verdicts) else []),
        *([dot(_OVER, "o", "over the budget", 8)] if not all(verdict.passed for verdict in decision.verdicts) else []),
        Line2D([], [], color=_PASSED, lw=2, alpha=0.3, label="Pareto front: nothing is better in both"),
        Line2D([], [], color=_LIMIT, lw=1.1, ls=(0, (5, 3)), label="limit of the budget"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)


def _place_labels(figure: Figure, panels: Sequence[tuple[Axes, Sequence[_Point]]]) -> None:
    """Places each label beside its point, at the offset with the lowest `_label_cost`."""
    from matplotlib.patheffects import withStroke

    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the measured positions must stay
    for axes, points in panels:
        bottom, _ = axes.get_ylim()
        obstacles = [box for point in points for box in _boxes(axes, point)]
        obstacles += [line.get_window_extent().padded(2) for line in axes.lines if line.get_linestyle() == "--"]
        for point in sorted(points, key=lambda point: (not point.is_chosen, point.x)):
            anchor = (point.x, max(point.y, bottom))
            label: Any = axes.annotate(
                point.label, anchor, (0, 0), textcoords="offset points", fontsize=8.5, linespacing=1.15,
                parse_math=False, color=point.color if point.is_chosen else _INK,
                fontweight="bold" if point.is_chosen else "normal",
                path_effects=[withStroke(linewidth=2.5, foreground="white")], zorder=6,
            )  # fmt: skip
            start = axes.transData.transform(anchor)
            size = label.get_window_extent().size
            boxes = {offset: _box_at(offset, start, size, figure.dpi) for offset in _LABEL_OFFSETS}
            best = min(_LABEL_OFFSETS, key=lambda offset: _label_cost(boxes[offset], offset, axes.bbox, obstacles))
            label.set_position(best)
            label.set_ha("left" if best[0] > 0 else "right")
            label.set_va("bottom" if best[1] > 0 else "top")
            if max(abs(best[0]), abs(best[1])) > 20:  # far enough to need a line to its point
                arrow = {"arrowstyle": "-", "color": "#a0a0a0", "lw": 0.7, "shrinkA": 0, "shrinkB": 5}
                axes.annotate("", anchor, best, textcoords="offset points", arrowprops=arrow)
            obstacles.append(boxes[best].padded(2))


def _boxes(axes: Axes, point: _Point) -> list[Bbox]:
    """The boxes that a point and its two bars cover, in pixels."""
    from matplotlib.transforms import Bbox

    bottom, _ = axes.get_ylim()
    y = max(point.y, bottom)
    radius = 11 if point.is_chosen else 7
    boxes = []
    for start, end, padding in (
        ((point.x, y), (point.x, y), radius),
        ((point.x, y), (point.x_end, y), 2),
        ((point.x, point.y_low), (point.x, point.y_high), 2),
    ):
        ends = axes.transData.transform([start, end])
        boxes.append(Bbox([ends.min(axis=0) - padding, ends.max(axis=0) + padding]))
    return boxes


def _box_at(offset: tuple[float, float], start: Any, size: Any, dpi: float) -> Bbox:
    """The box of a label of `size` at `offset` (in points) from `start`; the other values are in pixels."""
    from matplotlib.transforms import Bbox

    right, up = (value * dpi / 72 for value in offset)
    x, y = start[0] + right - (size[0] if right < 0 else 0), start[1] + up - (size[1] if up < 0 else 0)
    return Bbox.from_bounds(x, y, size[0], size[1])


def _label_cost(box: Bbox, offset: tuple[float, float], axes_box: Bbox, obstacles: Sequence[Bbox]) -> float:
    """The cost of a label in `box`: the area that it covers, the area outside the axes, and its distance."""
    from matplotlib.transforms import Bbox

    covered_area = 0.0
    for obstacle in obstacles:
        common = Bbox.intersection(box, obstacle)
        covered_area += 0.0 if common is None else common.width * common.height
    overlap = Bbox.intersection(box, axes_box)
    outside_area = box.width * box.height - (0.0 if overlap is None else overlap.width * overlap.height)
    return covered_area + 3 * outside_area + 3 * (abs(offset[0]) + abs(offset[1]))
