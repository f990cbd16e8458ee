"""Checks that files have classes: the names of their folders, or parts of their own names."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.scaffolding.planning.label_planning import MIN_ROWS_PER_CLASS
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile

_FOLDER_LABEL = "label"  # the column with the names of folders
_SEPARATORS = ("_", "-", ".", " ")
_PATTERN_EXAMPLE = "cat_1.png"


def require_file_labels(profile: SourceProfile, data: DataSource, label: str) -> None:
    """Raises DataUnfit where the folders of all files name no class, or one, or a table has names of files alone."""
    _require_more_than_names(profile, label)
    column = profile.column(label)
    is_of_files = data.kind in ("images", "audio") or (data.kind == "text" and data.unit == "file")
    if column is None or label != _FOLDER_LABEL or not is_of_files or data.path_pattern or column.num_distinct > 1:
        return
    folders = ", ".join(str(value) for value, _ in column.value_counts or ())
    problem = f"all files are in one folder, {folders}" if folders else "the files are in no folders"
    separator = _find_separator(profile.column("path"))
    where = f"in front of {separator!r}" if separator else f"in front of the first _, as in {_PATTERN_EXAMPLE}"
    pattern = rf"(?P<label>[^/]+?){re.escape(separator or '_')}[^/]*$"
    raise DataUnfit(
        f"{problem}, so they have no classes",
        required="a folder for each class, such as cat/1.png and dog/1.png, or file names with the class in them",
        where="--data",
        remedy=f"move the files into folders; or, if their names have the class {where}, add --path-pattern "
        f"{shlex.quote(pattern)}",
    )


def _require_more_than_names(profile: SourceProfile, label: str) -> None:
    others = [column for column in profile.columns if column.name != label]
    if others and all(column.names_files for column in others):
        raise DataUnfit(
            f"column {', '.join(column.name for column in others)} names files, which are not opened: "
            f"{others[0].file_problem}; there is no column beside it and {label}",
            required="images or recordings in the folder of the table or below it, or columns to learn from",
            where="--data",
            remedy=f"move the files into the table's folder; or each into a folder named by its {label}, and give "
            "their folder as --data, with --label label",
        )


def _find_separator(paths: ColumnProfile | None) -> str | None:
    """Returns the sign behind the part of the names that most likely is the class; None if no part has few values."""
    values = [] if paths is None else [PurePosixPath(str(value)).name for value, _ in paths.value_counts or ()]
    for separator in _SEPARATORS:
        starts = {name.partition(separator)[0] for name in values if separator in PurePosixPath(name).stem}
        if 2 <= len(starts) <= len(values) / MIN_ROWS_PER_CLASS:
            return separator
    return None
