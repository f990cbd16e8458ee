"""Imports engines that read settings from files of the current folder, without these files.

They belong to whoever made the folder: they name other servers, a version of the engine refuses them, or they start
programs, such as LaTeX for the text of figures.
"""

from __future__ import annotations

import contextlib
import sys

from bloomery.tasks.infrastructure.python_processes import NEUTRAL_FOLDER


def import_prefect() -> None:
    """Imports Prefect, which then has its settings from the environment and from its profile alone.

    It reads its settings once, when it is first imported, also from `.env`, `prefect.toml` and `pyproject.toml`.
    """
    if "prefect.context" not in sys.modules:
        with contextlib.chdir(NEUTRAL_FOLDER):
            import prefect.context  # noqa: F401


def import_matplotlib() -> None:
    """Imports matplotlib with its own defaults, instead of those of a `matplotlibrc`."""
    with contextlib.chdir(NEUTRAL_FOLDER):
        import matplotlib as mpl
    mpl.rcdefaults()  # where another package has imported it
