"""Which versions of the registry are kept, and which outputs and bentos they need."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic import ValidationError

from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.serving.champion_pointer import POINTER_FILE, read_pointer
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage_store import StoredOutput
from bloomery.tasks.registry.approvals import WAITS
from bloomery.tasks.registry.champion import list_followers, pointer_folder, previous_champion
from bloomery.tasks.registry.model_registry import BENTO, FREED, list_versions
from bloomery.tasks.tracking import mlflow_runs


@dataclass
class ReachableSet:
    """The references of records: folders of stage outputs (`stages/NAME/KEY`), digests of records, MLflow runs."""

    folders: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    runs: set[str] = field(default_factory=set)

    def contains(self, folder: str, output: StoredOutput) -> bool:
        # A run may look up an output of equal content that another run computed under another key.
        return folder in self.folders or output.record.get("digest") in self.digests


def kept_versions(name: str, num_last: int, spared: Collection[str]) -> dict[int, str]:
    """The versions of `name` to keep, each with the reason. `spared` are references such as `NAME:3`.

    A version is also kept for an alias, the pointer, an endpoint, a pending approval or a possible rollback.
    """
    reasons: dict[int, str] = {}
    versions = list_versions(name)
    version_of_bento = {version.tags.get(BENTO): int(version.version) for version in reversed(versions)}
    for alias, number in mlflow_runs.client().get_registered_model(name).aliases.items():
        reasons[int(number)] = alias
    previous = previous_champion(name)
    if previous is not None:
        reasons.setdefault(previous, "a rollback returns to it")
    for tag in [*_pointed_bentos(name), *(follower.bento for follower in list_followers(name))]:
        if tag in version_of_bento:
            reasons.setdefault(version_of_bento[tag], "an endpoint serves it")
    for version in versions:
        if version.tags.get("release", "").startswith(WAITS):
            reasons.setdefault(int(version.version), "waits for approval")
        if f"{name}:{version.version}" in spared:
            reasons.setdefault(int(version.version), "spared")
    complete = [version for version in versions if FREED not in version.tags]
    for version in complete[:num_last]:
        reasons.setdefault(int(version.version), f"one of the last {num_last}")
    return reasons


def _pointed_bentos(name: str) -> list[str]:
    """The bento that the pointer names, if there is one. Raises OutputCorrupt where it cannot be read."""
    path = pointer_folder(name) / POINTER_FILE
    return [read_pointer(path).bento] if path.is_file() else []


def bentos_in_use(tags: Collection[str]) -> set[str]:
    """The bentos that a living process names in its command or environment: served alone, as shadow or as canary."""
    used = set()
    folders = {tag: str(bento_folder(tag)) for tag in tags}
    for process in psutil.process_iter():
        try:
            text = " ".join([*process.cmdline(), *process.environ().values()])
        except (psutil.Error, OSError):
            continue
        if process.pid != os.getpid():
            used |= {tag for tag, folder in folders.items() if tag in text or folder in text}
    return used


def list_outputs() -> Iterator[tuple[str, StoredOutput]]:
    """Every complete stage output with its folder, relative to the state folder.

    Raises:
        OutputCorrupt: a record cannot be read, so the outputs that it needs are unknown.
    """
    home = settings().home
    for path in sorted((home / "stages").glob("[!.]*/*/record.json")):
        folder = str(path.parent.relative_to(home))
        try:
            yield folder, StoredOutput.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as failure:
            raise OutputCorrupt(
                f"a record cannot be read: {str(failure).splitlines()[0]}",
                required="the record of a stage",
                where=str(path),
                remedy="remove its folder: the stage computes it again",
            ) from failure


def packaged_bento(output: StoredOutput) -> str | None:
    """The tag of the bento in an output of `package` or `promote`; None for other stages."""
    record: dict[str, Any] = output.record if output.stage == "package" else output.record.get("bento", {})
    return record.get("tag") if output.stage in ("package", "promote") else None


def reachable_from(tags: Collection[str], outputs: Collection[tuple[str, StoredOutput]]) -> ReachableSet:
    """Everything that the records of these bentos refer to, back to the raw rows."""
    reachable = ReachableSet()
    for folder, output in outputs:
        if packaged_bento(output) in tags:
            reachable.folders.add(folder)
            _collect_references(output.record, reachable)
    return reachable


def _collect_references(node: object, reachable: ReachableSet) -> None:
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str) and value and key in ("digest", "run_id"):
                (reachable.digests if key == "digest" else reachable.runs).add(value)
            _collect_references(value, reachable)
    elif isinstance(node, list):
        for item in node:
            _collect_references(item, reachable)
    elif isinstance(node, str) and node.startswith("stages/"):
        reachable.folders.add("/".join(Path(node).parts[:3]))
