"""The plot of candidates: its panels, its limits and the places of its labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from bloomery.data_contracts.records.records import Candidate, Candidates, Energy, Interval, Release
from bloomery.models.compression.budget import Budget
from bloomery.models.profiling.latency import summarise
from bloomery.tasks.choose.budget_verdicts import decide_candidate
from bloomery.tasks.choose.pareto_plot import plot_pareto_front


def candidate(name: str, size: int, drop: float, seconds: float) -> dict[str, Any]:
    """The arguments of `candidate_of` for one candidate."""
    return {
        "name": name,
        "size_bytes": size,
        "score": Interval(value=0.9 - drop, low=0.1, high=0.95),
        "degradation": Interval(value=drop, low=drop - 0.004, high=drop + 0.004),
        "latencies": (summarise(seconds * np.linspace(1, 2, 9), 1e-4 * np.linspace(1, 2, 9), 1),),
    }


@pytest.fixture
def candidates(release: Release, candidate_of: Callable[..., Candidate]) -> Candidates:
    arguments = (
        candidate("fp32", 900_000, 0.0, 1e-4),
        candidate("$int8_{", 300_000, 0.001, 3e-5),
        candidate("pruned", 200_000, 0.004, 5e-5),
        candidate("hopeless", 1_000, 0.7, 1e-6),
    )
    candidates = tuple(candidate_of(**fields) for fields in arguments)
    return release.bento.choice.candidates.model_copy(update={"candidates": candidates, "baseline": "fp32"})


def draw(candidates: Candidates, budget: Budget, path: Path, *, panels: int = 2) -> bytes:
    plot_pareto_front(candidates, budget, decide_candidate(candidates, budget), path)
    assert imread(path).shape[:2] == (672, 720 * panels)
    return path.read_bytes()


def test_equal_choices_give_equal_plots_and_other_limits_other_plots(candidates: Candidates, tmp_path: Path) -> None:
    budgets = [
        Budget(),
        Budget(size_bytes=400_000, latency_ms=0.08),
        Budget(size_bytes=10, latency_ms=50),  # none passes, and both limits are far away
    ]
    plots = [draw(candidates, budget, tmp_path / f"{position}.png") for position, budget in enumerate(budgets)]
    assert len(set(plots)) == len(budgets)
    assert draw(candidates, budgets[0], tmp_path / "again.png") == plots[0]


def test_energy_has_a_panel_where_every_candidate_was_measured(candidates: Candidates, tmp_path: Path) -> None:
    budget = Budget(objective={"energy": 1, "size": 1})
    joules = {"fp32": 2e-3, "$int8_{": 9e-4, "pruned": 1.1e-3, "hopeless": 4e-5}
    updated = [
        candidate.model_copy(
            update={
                "energy": Energy(
                    batch_size=1, num_rounds=9, p50_j=joules[candidate.name], ratio=candidate.latency.ratio
                )
            }
        )
        for candidate in candidates.candidates
    ]
    with_energy = candidates.model_copy(update={"candidates": tuple(updated)})
    draw(with_energy, budget, tmp_path / "energy.png", panels=3)
    without_one = with_energy.model_copy(update={"candidates": (*updated[:-1], candidates.candidates[-1])})
    draw(without_one, Budget(), tmp_path / "without.png")


def test_a_regression_and_a_single_candidate_can_be_plotted(candidates: Candidates, tmp_path: Path) -> None:
    dataset = candidates.trained.dataset.model_copy(update={"task": "regression", "classes": ()})
    regression = candidates.model_copy(update={"trained": candidates.trained.model_copy(update={"dataset": dataset})})
    draw(regression, Budget(error_rise=0.01), tmp_path / "regression.png")
    perfect = candidates.candidates[0].model_copy(update={"score": Interval(value=0.0, low=0.0, high=0.0)})
    draw(regression.model_copy(update={"candidates": (perfect,)}), Budget(), tmp_path / "one.png")


def test_labels_cover_neither_each_other_nor_a_point(candidates: Candidates) -> None:
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

    from bloomery.tasks.choose.pareto_plot import _boxes, _place_labels, _Point

    figure = Figure(figsize=(6, 5.6), layout="constrained", dpi=120)
    axes = figure.subplots()
    points = [
        _Point(f"c{x}", f"c{x}\n98.1%", "k", x == 2, x, x, y, y, y) for x, y in ((2, 1), (2.1, 1.02), (2.2, 0.98))
    ]
    axes.set(xlim=(1, 4), ylim=(0, 2))
    _place_labels(figure, [(axes, points)])
    labels = [text.get_window_extent() for text in axes.texts if text.get_text()]
    assert len(labels) == 3
    circles = [_boxes(axes, point)[0].padded(-3) for point in points]
    for position, label in enumerate(labels):
        assert not any(Bbox.intersection(label, obstacle) for obstacle in [*labels[:position], *circles])
