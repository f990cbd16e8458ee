"""Imports packages that only some sources need."""

from __future__ import annotations

import importlib
from types import ModuleType

from bloomery.data_contracts.errors import EngineMissing


def import_package(name: str, command: str, source: str) -> ModuleType:
    """Returns the module `name`.

    Raises:
        EngineMissing: it is not installed; the remedy is the `command` that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as failure:
        raise EngineMissing(
            f"the package {name} cannot be imported: {failure}",
            required=f"the package {name}, to read {source}",
            where="this Python environment",
            remedy=command,
        ) from failure
