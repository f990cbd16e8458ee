"""Loads a version of the local registry without MLflow, whose import takes longer than everything else of a prediction.

It does what MLflow does with such a version: it runs the loader in the version's folder.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import yaml

from bloomery.tasks.tracking import local_database
from bloomery.tasks.tracking.local_database import DatabaseUnreadable

_LOADER = "bloomery_model_loader"  # the name of `deployments/mlflow_loader.py` in a registered model


def load_local_version(name: str, number: int) -> Any | None:
    """Returns the version as an object with `predict`; None if only MLflow's client can load it."""
    try:
        folder = local_database.find_model_folder(name, number)
    except DatabaseUnreadable:
        return None
    if folder is None or not (folder / "MLmodel").is_file():
        return None
    flavors = yaml.safe_load((folder / "MLmodel").read_text(encoding="utf-8"))["flavors"]
    flavor = flavors.get("python_function", {})
    if flavor.get("loader_module") != _LOADER:
        return None
    path = folder / flavor["code"] / f"{_LOADER}.py"
    spec = importlib.util.spec_from_file_location(_LOADER, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module._load_pyfunc(str(folder / flavor["data"]))
