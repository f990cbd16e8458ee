"""The state folder of the Python API: a notebook may change BLOOMERY_HOME between two calls."""

from __future__ import annotations

import os
from pathlib import Path

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.tasks.infrastructure.engine_environment import state_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking.mlflow_runs import client

_BENTOS = "BENTOML_HOME"
_used_folder = state_folder()  # the one that the variables of this process have been set for


def follow_state_folder() -> Path:
    """Makes this process use the state folder that BLOOMERY_HOME names now, and returns it."""
    global _used_folder
    folder = state_folder()
    if folder != _used_folder and os.environ.get(_BENTOS) == str(_used_folder / "bentoml"):
        os.environ[_BENTOS] = str(folder / "bentoml")
    if folder != settings().home:
        settings.cache_clear()
        client.cache_clear()
    _used_folder = folder
    return folder


def require_state_folder_of(model: str, folder: Path) -> None:
    """Raises SettingInvalid unless BLOOMERY_HOME still names the state folder that the model was loaded from."""
    current = follow_state_folder()
    if current != folder:
        raise SettingInvalid(
            f"{model} was loaded from the state folder {folder}, and BLOOMERY_HOME names {current} now",
            required="the state folder that the model was loaded from",
            where="the environment variable BLOOMERY_HOME of this process",
            remedy="set it back, or load the model again with bloomery.load",
        )
