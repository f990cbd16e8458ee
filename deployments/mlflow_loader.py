"""Loads a registered version for MLflow: `MLmodel` names this module, which is copied into the model's folder `code`.

MLflow puts that folder first on `sys.path`. So it holds nothing but this module, under a name of its own: a folder
`bloomery` there would hide the installed package, and lacks most of its rooms. The version's code lies with its
artifacts, and is imported where Bloomery is not installed, such as in an environment that MLflow has created.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

_MODULE = "bloomery.deployments.registry_model"


def _load_pyfunc(path: str) -> Any:
    """Returns the version in the folder `path` as an object with `predict`, as MLflow requires of a loader."""
    try:
        registry_model = importlib.import_module(_MODULE)
    except ModuleNotFoundError as failure:
        if failure.name != "bloomery":
            raise
        sys.path.append(path)
        registry_model = importlib.import_module(_MODULE)
    return registry_model.load_registry_model(Path(path) / "artifacts")
