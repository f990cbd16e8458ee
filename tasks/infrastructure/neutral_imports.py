"""Imports engines that read settings from files of the current folder, without these files.

They belong to whoever made the folder: they name other servers, a version of the engine refuses them, or they start
programs, such as LaTeX for the text of figures.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from bloomery.tasks.infrastructure.python_processes import NEUTRAL_FOLDER


def import_prefect() -> None:
    """Imports Prefect, which then has its settings from the environment and from its profile alone.

    It reads its settings once, when it is first imported, also from `.env`, `prefect.toml` and `pyproject.toml`.
    """
    if "prefect.context" not in sys.modules:
        with contextlib.chdir(NEUTRAL_FOLDER):
            import prefect.context  # noqa: F401


@contextlib.contextmanager
def use_prefect_api(url: str) -> Iterator[None]:
    """Within the context, Prefect's clients call the server at `url`. To change a setting, Prefect reads all again."""
    import_prefect()
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with contextlib.ExitStack() as stack:
        with contextlib.chdir(NEUTRAL_FOLDER):
            stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
        yield


def import_matplotlib() -> None:
    """Imports matplotlib with its own defaults, instead of those of a `matplotlibrc`."""
    with contextlib.chdir(NEUTRAL_FOLDER):
        import matplotlib as mpl
    mpl.rcdefaults()  # where another package has imported it
