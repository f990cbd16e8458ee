"""Garbage collection in the state folder: plans what no kept version needs, and removes it.

Each folder is moved aside by one rename, then removed. A killed collection therefore leaves every output complete or
absent; the next one removes what was moved aside.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlparse

from filelock import Timeout

from bloomery.data_contracts.documents.documents import Document
from bloomery.tasks.bentos.bento_store import bento_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration import stage_store
from bloomery.tasks.orchestration.stage_store import StoredOutput
from bloomery.tasks.registry.champion import champion_lock
from bloomery.tasks.registry.logged_model import find_logged_model, mark_incomplete
from bloomery.tasks.registry.model_registry import (
    CANDIDATE_RUN,
    FREED,
    bento_of,
    find_champion,
    find_version,
    list_names,
    list_versions,
)
from bloomery.tasks.registry.reachability import (
    bentos_in_use,
    kept_versions,
    list_outputs,
    packaged_bento,
    reachable_from,
)
from bloomery.tasks.tracking import mlflow_runs

_TRASH = ".freed"
_DAY_S = 86_400
_KEY_LETTERS = 32  # of a stage key; the folder of a trial may append its number
_OF_FREED_VERSION = "of a freed version"
_UNNEEDED = "no version needs it"
_UNFINISHED_FOLDERS = ("checkpoints", "searches", "jobs")
Kind = Literal["log", "quarantine", "unfinished", "output", "model file", "registry copy", "bento"]


class Removal(Document):
    """A file or folder to remove; `path` is relative to the state folder where it lies there."""

    kind: Kind
    path: str
    size_bytes: int
    reason: str


class VersionDecision(Document):
    """A version to free or to keep, and why."""

    name: str
    version: int
    bento: str
    reason: str


class CollectionPlan(Document):
    """The removals of a collection, in their order, and the versions that it frees and keeps."""

    removals: tuple[Removal, ...]
    freed: tuple[VersionDecision, ...] = ()
    kept: tuple[VersionDecision, ...] = ()


def disk_usage(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, as far as they are readable."""
    total = 0
    for entry in [path] if path.is_file() else path.rglob("*"):
        with contextlib.suppress(OSError):
            total += entry.lstat().st_size if entry.is_file() or entry.is_symlink() else 0
    return total


def plan_aged(days: float) -> CollectionPlan:
    """Logs, quarantines and unfinished trainings that are unchanged for `days`. Does not read the registry."""
    home = settings().home
    removals: list[Removal] = []
    unchanged = f"unchanged for {days:g} days"
    kinds: dict[str, Kind] = {"logs": "log", "quarantine": "quarantine"}
    for folder, kind in kinds.items():
        paths = [path for path in sorted((home / folder).glob("*")) if _age_days(path) >= days]
        removals += [_removal(kind, path, unchanged) for path in paths]
    for folder in _UNFINISHED_FOLDERS:
        for path in sorted((home / folder).glob("*")):
            has_ended = (home / "stages" / "train" / path.name[:_KEY_LETTERS] / "record.json").is_file()
            if has_ended or _age_days(path) >= days:
                removals.append(_removal("unfinished", path, "its training has ended" if has_ended else unchanged))
    return CollectionPlan(removals=tuple(removals))


def plan_unreachable(num_last: int, spared: Collection[str], days: float) -> CollectionPlan:
    """Outputs, bentos and candidates' model files that no kept version needs.

    Outputs that no version at all needs, such as those of a killed run, are removed when they are `days` old.

    Raises:
        DataMissing: a version of `spared` does not exist.
        OutputCorrupt: a record or a pointer cannot be read.
    """
    for reference in spared:
        find_version(reference)
    outputs = list(list_outputs())
    kept, candidates = _split_versions(num_last, spared)
    registered = {decision.bento for decision in (*kept, *candidates)}
    packaged = {tag for _, output in outputs if (tag := packaged_bento(output)) is not None}
    # A version may have the bento of an older one, and a process may serve a bento of no kept version.
    needed = {decision.bento for decision in kept} | bentos_in_use(registered | packaged)
    freed = [
        decision.model_copy(update={"reason": "no alias, endpoint or rule keeps it"})
        for decision in candidates
        if decision.bento not in needed
    ]
    kept += [decision.model_copy(update={"reason": "in use"}) for decision in candidates if decision.bento in needed]
    ages = _bento_ages(outputs, packaged - registered)
    needed |= {tag for tag, age in ages.items() if age < days}
    removals = _plan_outputs(outputs, needed, {decision.bento for decision in freed}, days)
    bentos = [
        _removal("bento", bento_folder(tag), _OF_FREED_VERSION if tag in registered else _UNNEEDED)
        for tag in sorted((registered | packaged) - needed)
        if bento_folder(tag).is_dir()
    ]
    copies = list(_plan_registry_copies(freed, outputs, needed))
    removed_paths = {removal.path for removal in bentos}
    freed = [decision for decision in freed if _relative_path(bento_folder(decision.bento)) in removed_paths]
    return CollectionPlan(removals=(*removals, *copies, *bentos), freed=tuple(freed), kept=tuple(kept))


def _split_versions(num_last: int, spared: Collection[str]) -> tuple[list[VersionDecision], list[VersionDecision]]:
    """The versions to keep, with reasons, and all others that have a bento."""
    kept: list[VersionDecision] = []
    candidates: list[VersionDecision] = []
    for name in list_names():
        reasons = kept_versions(name, num_last, spared)
        for version in list_versions(name):
            tag = bento_of(version)
            if tag is not None:
                number = int(version.version)
                decision = VersionDecision(name=name, version=number, bento=tag, reason=reasons.get(number, ""))
                (kept if number in reasons else candidates).append(decision)
    return kept, candidates


def _plan_registry_copies(
    freed: Collection[VersionDecision], outputs: Collection[tuple[str, StoredOutput]], needed: Collection[str]
) -> Iterator[Removal]:
    """The files of MLflow models that were logged for bentos that no version needs, with or without a version."""
    runs = {
        (find_version(f"{version.name}:{version.version}").tags.get(CANDIDATE_RUN), version.bento) for version in freed
    }
    for _, output in outputs:
        tag = packaged_bento(output)
        if output.stage == "package" and tag is not None and tag not in needed:
            runs.add((output.record["choice"]["candidate"]["run_id"], tag))
    freed_tags = {version.bento for version in freed}
    for run_id, tag in sorted((run_id, tag) for run_id, tag in runs if run_id is not None):
        run = mlflow_runs.find_run(run_id)
        model = None if run is None else find_logged_model(run, tag)
        folder = None if model is None else _local_folder(model.artifact_location)
        if folder is not None and folder.is_dir():
            yield _removal("registry copy", folder, _OF_FREED_VERSION if tag in freed_tags else _UNNEEDED)


def _bento_ages(outputs: Collection[tuple[str, StoredOutput]], tags: Collection[str]) -> dict[str, float]:
    """Days since each bento was packaged, from the record of the output that packaged it."""
    return {
        tag: _age_days(settings().home / folder / "record.json")
        for folder, output in outputs
        if (tag := packaged_bento(output)) is not None and tag in tags
    }


def _plan_outputs(
    outputs: Collection[tuple[str, StoredOutput]], needed: Collection[str], freed: Collection[str], days: float
) -> list[Removal]:
    """Outputs that no needed bento reaches: those that a freed bento reaches, and others that are `days` old."""
    reachable, formerly_reachable = reachable_from(needed, outputs), reachable_from(freed, outputs)
    removals: list[Removal] = []
    for folder, output in outputs:
        path = settings().home / folder
        was_needed = formerly_reachable.contains(folder, output)
        is_young = _age_days(path / "record.json") < days
        if reachable.contains(folder, output) or (not was_needed and is_young):
            continue
        reason = _OF_FREED_VERSION if was_needed else _UNNEEDED
        # Model files come before the output whose record names them, so a killed collection finds them again.
        removals += [*_plan_model_files(output, reachable.runs, reason), _removal("output", path, reason)]
    # Outputs of no version come first: on a full disk they free the space that the registry needs for a tag.
    removals.sort(key=lambda removal: removal.reason == _OF_FREED_VERSION)
    return removals


def collect_garbage(
    plan: CollectionPlan, on_removed: Callable[[Removal], None] = lambda removal: None
) -> list[Removal]:
    """Executes a plan, except for outputs that a living process uses. Returns the removals that were made.

    Freed versions are tagged first, so that no incomplete version looks complete.
    """
    remove_leftovers()
    today = time.strftime("%Y-%m-%d", time.gmtime())
    removed = [
        removal for removal in plan.removals if removal.reason != _OF_FREED_VERSION and _try_remove(removal, on_removed)
    ]
    for version in plan.freed:
        mlflow_runs.client().set_model_version_tag(version.name, str(version.version), FREED, today)
    removed += [
        removal for removal in plan.removals if removal.reason == _OF_FREED_VERSION and _try_remove(removal, on_removed)
    ]
    for name in {version.name for version in plan.freed}:
        _repair_latest(name)
    return removed


@contextlib.contextmanager
def lock_champions() -> Iterator[None]:
    """Locks the champions of all names, so that none changes on this machine inside the `with` block."""
    with contextlib.ExitStack() as stack:
        for name in list_names():
            stack.enter_context(champion_lock(name))
        yield


def remove_leftovers() -> None:
    """Removes the folders that a killed collection had moved aside."""
    for folder in (settings().home / _TRASH, Path(os.environ["BENTOML_HOME"]) / _TRASH):
        shutil.rmtree(folder, ignore_errors=True)


def _try_remove(removal: Removal, on_removed: Callable[[Removal], None]) -> bool:
    path = settings().home / removal.path
    stage = path.parent.name if removal.kind == "output" else "train" if removal.kind == "unfinished" else None
    if removal.kind == "registry copy":
        mark_incomplete(path.parent.name, "freed by `bloomery gc`: run the recipe again, which restores its files")
    try:
        with stage_store.try_lock(stage, path.name[:_KEY_LETTERS]) if stage else contextlib.nullcontext():
            _remove(path, Path(os.environ["BENTOML_HOME"]) if removal.kind == "bento" else settings().home)
    except (Timeout, FileNotFoundError):
        return False  # another process uses it, or has removed it
    on_removed(removal)
    return True


def _remove(path: Path, root: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    trash_path = root / _TRASH / f"{path.parent.name}-{path.name}-{os.getpid()}"
    try:
        while not trash_path.exists():
            trash_path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.rename(trash_path)
            except FileNotFoundError:
                if not path.exists():
                    raise
                # Another collection has removed the trash folder in between.
    except FileNotFoundError:
        raise
    except OSError:
        # The disk is full or another one: the file that marks the folder as complete is removed first.
        for name in ("record.json", "bento.yaml"):
            (path / name).unlink(missing_ok=True)
        trash_path = path
    with contextlib.suppress(FileNotFoundError):  # another collection removes it, too
        shutil.rmtree(trash_path)


def _repair_latest(name: str) -> None:
    """Makes BentoML's file `latest` name the champion's bento if its own is gone, or removes the file."""
    folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / name
    latest = folder / "latest"
    if not latest.is_file() or (folder / latest.read_text(encoding="utf-8").strip()).is_dir():
        return
    champion = bento_of(find_champion(name))
    if champion is not None and bento_folder(champion).is_dir():
        latest.write_text(champion.split(":")[1], encoding="utf-8")
    else:
        latest.unlink()


def _plan_model_files(output: StoredOutput, needed_runs: Collection[str], reason: str) -> Iterator[Removal]:
    """The folders of model files in the candidates' MLflow runs. The runs, their metrics and tables stay."""
    for candidate in output.record["candidates"] if output.stage == "compress" else ():
        if candidate["run_id"] in needed_runs:
            continue
        run = mlflow_runs.find_run(candidate["run_id"])
        folder = None if run is None else _local_folder(run.info.artifact_uri)
        for path in sorted(folder.glob("*/")) if folder is not None else ():
            yield _removal("model file", path, reason)


def _local_folder(address: str) -> Path | None:
    """The folder of artifacts; None if it is not in the state folder."""
    uri = urlparse(address)
    folder = Path(unquote(uri.path))
    return folder if uri.scheme == "file" and folder.is_relative_to(settings().home) else None


def _removal(kind: Kind, path: Path, reason: str) -> Removal:
    return Removal(kind=kind, path=_relative_path(path), size_bytes=disk_usage(path), reason=reason)


def _relative_path(path: Path) -> str:
    home = settings().home
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _age_days(path: Path) -> float:
    """Days since the last write to the file, or to anything in the folder."""
    newest = 0.0
    for entry in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, entry.lstat().st_mtime)
    return (time.time() - newest) / _DAY_S
