"""Creates and writes figures of matplotlib, whose texts come from users' data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.tasks.infrastructure.neutral_imports import import_matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def create_figure(**options: Any) -> Figure:
    """Creates a figure with matplotlib's own defaults, whatever a `matplotlibrc` says."""
    import_matplotlib()
    from matplotlib.figure import Figure

    return Figure(**options)


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Writes the figure to `path`. A letter that the font does not have is drawn as a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        figure.savefig(path, dpi=dpi)
