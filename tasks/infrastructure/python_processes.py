"""Commands that run Python without a module of the current folder.

`python -m` and `python -c` put the current folder first on `sys.path`, so a `tasks.py` or `torch.py` that lies there by
chance, or that came with downloaded data, would be imported. `-P` prevents it in the started process. Its own
children inherit `safe_path_variables`.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

# A folder whose modules hide none, since Python's own are in it: for programs that insist on importing from a folder.
NEUTRAL_FOLDER = Path(sysconfig.get_path("stdlib"))


def module_command(module: str, *arguments: str) -> list[str]:
    """Returns the command that runs an installed module, as `python -m` does."""
    return [sys.executable, "-P", "-m", module, *arguments]


def code_command(code: str, *arguments: str) -> list[str]:
    """Returns the command that runs a program text, as `python -c` does."""
    return [sys.executable, "-P", "-c", code, *arguments]


def safe_path_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that keep the current folder off the `sys.path` of child processes, and of their children.

    Engines start Python without `-P`: Prefect's worker for a run, BentoML and MLflow for a server, torchrun, and Spark.
    """
    variables = {
        "PYTHONSAFEPATH": "1",
        # uvicorn's program puts this folder first on the path. Its default is the current one.
        "UVICORN_APP_DIR": str(NEUTRAL_FOLDER),
    }
    if "PYTHONPATH" in environment:  # in which an empty entry is the current folder
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, environment["PYTHONPATH"].split(os.pathsep)))
    return variables
