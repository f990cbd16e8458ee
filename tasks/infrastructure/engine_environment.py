"""The environment variables of the engines: where they write, and which instruction set they compute with.

Engines read them when they are imported or first used, so `bloomery.flows` applies them before it imports any.
"""

from __future__ import annotations

import contextlib
import getpass
import os
from collections.abc import Mapping
from pathlib import Path

from bloomery.tasks.infrastructure.device import instruction_set
from bloomery.tasks.infrastructure.python_processes import safe_path_variables
from bloomery.tasks.infrastructure.service_status import read_service_status

_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Returns the absolute path of the state folder: `BLOOMERY_HOME`, or `.bloomery` in the working directory.

    If the working directory has been deleted, the path is relative, and `require_writable` reports it.
    """
    path = Path(environment.get("BLOOMERY_HOME") or ".bloomery")
    with contextlib.suppress(RuntimeError):  # no user of this name: as in a shell, the text stays
        path = path.expanduser()
    with contextlib.suppress(FileNotFoundError):
        path = path.absolute()
    return path


def tracking_uri(environment: Mapping[str, str] = os.environ) -> str:
    """Returns the address of MLflow's tracking store: `MLFLOW_TRACKING_URI`, or a database in the state folder."""
    # A server that `up` has started reads the same file, and writing to the file directly is quicker.
    return environment.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state_folder(environment)}/mlflow/mlflow.db"


def apply_engine_environment() -> None:
    """Sets the variables of every engine in this process, and so of its children. A variable that is set stays.

    Writes nothing to disk and imports no engine.
    """
    home = state_folder()
    prefect_home = Path(os.environ.get("PREFECT_HOME", home / "prefect"))
    variables = {
        "BLOOMERY_HOME": str(home),
        "PREFECT_HOME": str(prefect_home),
        # Set, since Prefect would else read the two paths from `.env`, prefect.toml or pyproject.toml in the current
        # folder. A configuration of logging may call any function.
        "PREFECT_PROFILES_PATH": str(prefect_home / "profiles.toml"),
        "PREFECT_LOGGING_SETTINGS_PATH": str(prefect_home / "logging.yml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "MLFLOW_TRACKING_URI": tracking_uri(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_UV_AUTO_DETECT": "false",  # else a logged model gets `uv.lock` of the current folder
        "BENTOML_HOME": str(home / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "GX_ANALYTICS_ENABLED": "False",
        "ORT_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
        "MPLCONFIGDIR": str(home / "matplotlib"),
    }
    services = read_service_status(home)
    if services is not None and services.prefect_api_url is not None:
        variables["PREFECT_API_URL"] = services.prefect_api_url
    for name, value in (variables | instruction_set()).items():
        os.environ.setdefault(name, value)
    os.environ.update(safe_path_variables(os.environ))
    os.environ.update(direct_loopback_variables(os.environ))
    os.environ.update(user_variables())


def user_variables() -> dict[str, str]:
    """Returns the variable with the user's name, if the system knows none, as in a container with any user id.

    The record of a promotion has the name, and MLflow and PyTorch ask for it, too.
    """
    try:
        getpass.getuser()
    except (KeyError, OSError):  # of Python up to 3.12, and later
        return {"LOGNAME": f"uid{os.getuid()}"}
    return {}


def direct_loopback_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables with which clients reach servers on this machine directly, if the user has set a proxy."""
    if not any(environment.get(variant) for name in _PROXIES for variant in (name, name.upper())):
        return {}
    # Clients read the one or the other. An empty one counts as none.
    hosts = (environment.get("no_proxy") or environment.get("NO_PROXY") or "").split(",")
    names = [host.strip() for host in hosts if host.strip()]
    value = ",".join(names if "*" in names else dict.fromkeys([*names, *_LOOPBACK]))
    return {"no_proxy": value, "NO_PROXY": value}
