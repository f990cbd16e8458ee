"""Plots show names of users' data, whatever letters and signs these have."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib import rcParams

from bloomery.tasks.evaluation.figures import create_figure
from bloomery.tasks.evaluation.plots import plot_confusion_matrix, plot_images
from bloomery.tasks.train.explanation_plots import plot_column_rows, plot_importance


@pytest.mark.parametrize("name", ["価格", "$x_{$", "a\\b^{_", "😀", "two\nlines", "[/]"])
def test_names_are_plotted_as_they_are_and_without_a_warning(name: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion_matrix(np.eye(2), (name, "other"), paths[0])
        plot_importance(np.array([1.0, 2.0]), (name, "other"), 1, paths[1])
        plot_column_rows(np.array([[1.0, -2.0]]), [[f"{name} = 3", "other"]], [f"truth {name}"], paths[2])
        plot_images(np.zeros((1, 1, 2, 2)), [name], paths[3])
    assert all(path.stat().st_size > 1_000 for path in paths)


def test_a_figure_has_the_defaults_of_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of a `matplotlibrc` in the current folder, which could start LaTeX for every text."""
    monkeypatch.setitem(rcParams, "text.usetex", True)
    figure = create_figure(figsize=(1, 1))
    assert not figure.text(0, 0, "a").get_usetex()
