"""Finds folders that are named by the split of the files in them, such as `train/cat/1.png`."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.models.features.splits import SPLITS
from bloomery.tasks.ingest import locations
from bloomery.tasks.scaffolding.source_options.split_names import SPLIT_NAMES


def infer_split_folders(data: DataSource) -> tuple[dict[str, Any], dict[str, str]]:
    """Returns the options that replace the source by one for each split, and the reason; nothing without such folders.

    Files of a split that are in no folder of a class have no label, and are not read; nor are files beside the folders.
    Without a split for tests, that for validation is it.
    """
    folders: dict[str, str] = {}
    labelled: set[str] = set()
    places_of_others: list[str] = []
    for file in locations.find_row_files(data, data.source_files[0]):
        names = PurePosixPath(file.relative).parts[:-1]
        place = next((index for index, name in enumerate(names) if name.lower() in SPLIT_NAMES), None)
        if place is None:
            places_of_others.append("/".join(names))
            continue
        part, folder = SPLIT_NAMES[names[place].lower()], "/".join(names[: place + 1])
        if folders.setdefault(part, folder) != folder:
            return {}, {}
        if place + 1 < len(names):
            labelled.add(part)
    parents = {folder.rpartition("/")[0] for folder in folders.values()}
    if len(folders) < 2 or "train" not in labelled or not parents.issuperset(places_of_others):
        return {}, {}
    unread = ", ".join(folder for part, folder in folders.items() if part not in labelled)
    note = "the names of the folders say which split they are"
    note += f"; not read, since it has no folders of classes: {unread}" if unread else ""
    note += f"; not read: {len(places_of_others):,} files beside these folders" if places_of_others else ""
    patterns = {part: f"^{re.escape(folders[part])}/" for part in SPLITS if part in labelled}
    if len(patterns) == 1:
        return {"source": data.source, "files": patterns["train"]}, {"files": note}
    if "test" not in patterns:
        patterns["test"] = patterns.pop("val")
    sources = [{"source": data.source, "files": pattern, "part": part} for part, pattern in patterns.items()]
    return {"sources": sources}, {"sources": note}
