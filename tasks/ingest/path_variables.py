"""Paths that begin with an environment variable, such as `${DATA}/rows.csv`: one recipe for data in any folder."""

from __future__ import annotations

import os
from pathlib import Path

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.data_contracts.recipe_sections.source_paths import REMOTE, path_variable, source_scheme
from bloomery.tasks.ingest.locations import obtain_hint


def expand_variables(data: DataSource) -> DataSource:
    """Returns the data with the values of the variables. A relative folder starts at the current directory.

    Raises:
        DataMissing: a variable is not set, or names no folder.
    """
    return data.map_paths(lambda path: _expand(path, data))


def _expand(path: str, data: DataSource) -> str:
    variable = path_variable(path)
    if variable is None:
        return path
    relative = path.removeprefix(f"${{{variable}}}").lstrip("/")
    folder = os.environ.get(variable, "")
    if not folder:
        raise DataMissing(
            f"the environment variable {variable} is not set",
            required=f"the folder that holds {relative or 'the data'}",
            where=f"the recipe's data: {path}",
            remedy=f"export {variable}=FOLDER, with the data in it{obtain_hint(data)}",
        )
    if folder.startswith(REMOTE):
        return f"{folder.rstrip('/')}/{relative}"
    if source_scheme(folder) is not None:
        raise DataMissing(
            f"the environment variable {variable} is {folder!r}",
            required=f"a folder on this machine, or one that begins with {' or '.join(REMOTE)}",
            where=f"the recipe's data: {path}",
            remedy=f"export {variable}=FOLDER",
        )
    return str(Path(folder).expanduser().absolute() / relative)
