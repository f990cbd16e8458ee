"""What the versions of the registry need: which of them are kept, and which outputs and bentos their records reach."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from pydantic import ValidationError

from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.serving.champion_pointer import POINTER, read_pointer
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage_store import Shelf
from bloomery.tasks.registry import approvals, champion
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


@dataclass
class Reach:
    """What some records name: places of stage outputs (`stages/NAME/KEY`), digests of records, MLflow runs."""

    places: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)

    def holds(self, place: str, shelf: Shelf) -> bool:
        # An output of equal content is what a run looks up where another run made what the version came from.
        return place in self.places or shelf.record.get("digest") in self.digests


def kept(name: str, num_last: int, spared: Collection[str]) -> dict[int, str]:
    """The versions of `name` that stay, and why each does: `spared` are references such as `NAME:3`.

    A pointer, an alias of any name, a request for approval and the version that a rollback would bring back count too.
    """
    why: dict[int, str] = {}
    versions = registry.versions(name)
    bentos = {version.tags.get(registry.BENTO): int(version.version) for version in reversed(versions)}
    for alias, number in mlflow_runs.client().get_registered_model(name).aliases.items():
        why[int(number)] = alias
    former = champion.former_of(name)
    if former is not None:
        why.setdefault(former, "a rollback brings it back")
    for tag in [*_pointed(name), *(one.bento for one in champion.followers(name))]:
        if tag in bentos:
            why.setdefault(bentos[tag], "an endpoint answers with it")
    for version in versions:
        if version.tags.get("release", "").startswith(approvals.WAITS):
            why.setdefault(int(version.version), "waits for approval")
        if f"{name}:{version.version}" in spared:
            why.setdefault(int(version.version), "spared")
    whole = [version for version in versions if registry.FREED not in version.tags]
    for version in whole[:num_last]:
        why.setdefault(int(version.version), f"one of the last {num_last}")
    return why


def _pointed(name: str) -> list[str]:
    """The bento that the pointer names, if there is one. Raises OutputCorrupt where it cannot be read."""
    path = champion.folder_of(name) / POINTER
    return [read_pointer(path).bento] if path.is_file() else []


def used_by_processes(tags: Collection[str]) -> set[str]:
    """Those of the bentos that a living process has in its command or its environment: served alone, shadow, canary."""
    used = set()
    folders = {tag: str(bento_folder(tag)) for tag in tags}
    for process in psutil.process_iter():
        try:
            said = " ".join([*process.cmdline(), *process.environ().values()])
        except (psutil.Error, OSError):
            continue
        if process.pid != os.getpid():
            used |= {tag for tag, folder in folders.items() if tag in said or folder in said}
    return used


def shelves() -> Iterator[tuple[str, Shelf]]:
    """Every whole output with its place.

    Raises:
        OutputCorrupt: a record cannot be read, so that nobody knows what it needs.
    """
    home = settings().home
    for path in sorted((home / "stages").glob("[!.]*/*/record.json")):
        place = str(path.parent.relative_to(home))
        try:
            yield place, Shelf.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as failure:
            raise OutputCorrupt(
                f"a record cannot be read: {str(failure).splitlines()[0]}",
                required="the record of a stage",
                where=str(path),
                remedy="remove its folder: the stage computes it again",
            ) from failure


def bento_of(shelf: Shelf) -> str | None:
    """The tag of the bento that an output of `package` or `promote` is about."""
    record: dict[str, Any] = shelf.record if shelf.stage == "package" else shelf.record.get("bento", {})
    return record.get("tag") if shelf.stage in ("package", "promote") else None


def reach_of(tags: Collection[str], found: Collection[tuple[str, Shelf]]) -> Reach:
    """What the records of these bentos name, back to the rows."""
    reach = Reach()
    for place, shelf in found:
        if bento_of(shelf) in tags:
            reach.places.add(place)
            _walk(shelf.record, reach)
    return reach


def _walk(node: Any, reach: Reach) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str) and value and key in ("digest", "run_id"):
                (reach.digests if key == "digest" else reach.runs).add(value)
            _walk(value, reach)
    elif isinstance(node, list):
        for one in node:
            _walk(one, reach)
    elif isinstance(node, str) and node.startswith("stages/"):
        reach.places.add("/".join(Path(node).parts[:3]))


def bentos_of(versions: Collection[ModelVersion]) -> set[str]:
    return {tag for tag in (registry.bento_of(version) for version in versions) if tag is not None}
