"""A folder such as a user may work in, whose modules have the names of installed ones and must not be imported."""

from __future__ import annotations

import sys
from functools import cache
from importlib import metadata
from pathlib import Path

IMPORTED = "imported.txt"  # lists what was imported in spite of that
_USERS_FILES = ("tasks", "models", "flows", "deployments", "data_contracts", "service", "utils", "config", "settings")
_CODE = (
    "import os\n"
    "fd = os.open({marker!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)\n"
    "os.write(fd, (__file__ + '\\n').encode())\n"
    "raise RuntimeError('a file of the current folder was imported')\n"
)
# `python -m` without `-P` imports these before any code of ours; then no line could be written.
_LOADED_AT_START = frozenset({"os", "site", "sys", "io", "abc", "codecs", "stat", "posixpath", "encodings"})


@cache
def _names() -> list[str]:
    names = {*sys.stdlib_module_names, *metadata.packages_distributions(), "sitecustomize", "usercustomize"}
    return sorted(name for name in names - _LOADED_AT_START if name.isidentifier())


def fill_folder(folder: Path) -> Path:
    """Fills `folder` with a module for each name of Python, of an installed package and of a user's usual files.

    Each writes its path to the file `IMPORTED` and raises. Prefect's settings name a configuration that does so, too.
    Settings of engines are invalid, or start programs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    code = _CODE.format(marker=str(folder / IMPORTED))
    for name in _names():
        (folder / f"{name}.py").write_text(code)
    for name in ("bloomery", *_USERS_FILES):
        (folder / f"{name}.py").write_text(code)
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(code)
    (folder / ".env").write_text("PREFECT_LOGGING_SETTINGS_PATH=logging.yml\nPREFECT_LOGGING_LEVEL=none\n")
    (folder / "prefect.toml").write_text("[logging]\nlevel = 'none'\n")
    (folder / "pyproject.toml").write_text("[tool.prefect\n")
    (folder / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 7\n")
    call = f"{{'()': builtins.open, file: '{folder / IMPORTED}', mode: a}}"
    (folder / "logging.yml").write_text(f"version: 1\nfilters:\n  called: {call}\n")
    return folder


def imported_files(folder: Path) -> list[str]:
    """Returns the modules of the folder that were imported since it was filled."""
    path = folder / IMPORTED
    return sorted({IMPORTED, *path.read_text().splitlines()}) if path.exists() else []
