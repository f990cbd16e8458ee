"""From rows and a data contract to a smaller, served model.

`init`, `run` and `load` are the API for notebooks and programs, which docs/notebooks.md describes. They are imported
when they are first used, so `import bloomery` is instant. The rooms, such as `bloomery.models`, are subpackages.
"""

import os
import sys


def _leave_start_folder() -> None:
    """Removes what `python -m` and the installed command put first on `sys.path`: the current folder, or the command's.

    A module there must not hide an installed one. Where the package itself is imported from it, it stays, and so it
    does for a program of the user, which may import this package.
    """
    program, words = os.path.basename(sys.argv[0] if sys.argv else ""), sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    is_module = program == "-m" and module.split(".")[0] == "bloomery"
    package_folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if (is_module or program == "bloomery") and not sys.flags.safe_path and sys.path[0] != package_folder:
        del sys.path[0]


_leave_start_folder()  # before anything is imported that is not built in, or loaded at the start of Python

import importlib  # noqa: E402

TYPE_CHECKING = False  # type checkers know this name; `typing` would take time to import
if TYPE_CHECKING:
    from typing import Any

    from bloomery.data_contracts.errors import BloomeryError
    from bloomery.flows.python_api.commands import Draft, init, run
    from bloomery.flows.python_api.displays import Card, ConfusionMatrix, ParetoFront
    from bloomery.flows.python_api.models import Model, load

__all__ = ["BloomeryError", "Card", "ConfusionMatrix", "Draft", "Model", "ParetoFront", "init", "load", "run"]
_MODULES = {
    "BloomeryError": "data_contracts.errors",
    **dict.fromkeys(("Draft", "init", "run"), "flows.python_api.commands"),
    **dict.fromkeys(("Card", "ConfusionMatrix", "ParetoFront"), "flows.python_api.displays"),
    **dict.fromkeys(("Model", "load"), "flows.python_api.models"),
}
_ROOMS = ("data_contracts", "models", "tasks", "flows", "deployments")
# Of the variables that importing `flows` sets, those that the API needs. The others configure engines, which run in
# processes of their own: in a notebook they would change what the user's own PyTorch, matplotlib or MLflow does.
_KEPT_VARIABLES = ("BLOOMERY_HOME", "BENTOML_HOME", "ORT_DISABLE_TELEMETRY", "MLFLOW_DISABLE_TELEMETRY")


def __getattr__(name: str) -> "Any":
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if f"{__name__}.flows" not in sys.modules:
        _import_flows()
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})


def _import_flows() -> None:
    before = dict(os.environ)
    importlib.import_module(f"{__name__}.flows")
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    os.environ.clear()
    os.environ.update({**kept, **before})


def _prefer_older_bentos() -> None:
    """Puts the rooms of a bento first that an earlier Bloomery has packaged: its folder `bloomery` lacks this file."""
    for entry in filter(None, sys.path):
        folder = os.path.join(entry, "bloomery")
        is_package = os.path.exists(os.path.join(folder, "__init__.py"))
        if os.path.isdir(folder) and not is_package and os.path.isfile(f"{entry}/artifacts/manifest.json"):
            __path__.insert(0, folder)


_prefer_older_bentos()
