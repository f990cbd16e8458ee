"""What no kept version needs is found, told and freed. Each piece is moved aside in one rename, then removed.

So a gc that is killed leaves every output whole or absent; what it had moved aside goes with the next one.
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
from bloomery.tasks.registry import champion as promotions
from bloomery.tasks.registry import model_registry, reachability
from bloomery.tasks.tracking import mlflow_runs

_ASIDE = ".freed"
_DAY_S = 86_400
_KEY = 32  # letters of a key; a trial's folder may add its number
_OF_FREED = "of a freed version"
_UNDER_WAY = ("checkpoints", "searches", "jobs")
Kind = Literal["log", "quarantine", "unfinished", "output", "model file", "bento"]


class Piece(Document):
    """Something that goes: a file or folder, `place` below the state folder where it lies there."""

    kind: Kind
    place: str
    size_bytes: int
    why: str


class Version(Document):
    """A version that goes, or stays because of `why`."""

    name: str
    version: int
    bento: str
    why: str


class Plan(Document):
    """What would be freed, in the order in which it is."""

    pieces: tuple[Piece, ...]
    freed: tuple[Version, ...] = ()
    kept: tuple[Version, ...] = ()


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder, as far as they can be seen."""
    total = 0
    for one in [path] if path.is_file() else path.rglob("*"):
        with contextlib.suppress(OSError):
            total += one.lstat().st_size if one.is_file() or one.is_symlink() else 0
    return total


def aged(days: float) -> Plan:
    """Logs, quarantines and unfinished trainings that nothing has touched for `days`. Asks no registry."""
    home = settings().home
    pieces: list[Piece] = []
    aging: dict[str, Kind] = {"logs": "log", "quarantine": "quarantine"}
    for folder, kind in aging.items():
        old = [path for path in sorted((home / folder).glob("*")) if _age_days(path) >= days]
        pieces += [_piece(kind, path, f"untouched for {days:g} days") for path in old]
    for folder in _UNDER_WAY:
        for path in sorted((home / folder).glob("*")):
            finished = (home / "stages" / "train" / path.name[:_KEY] / "record.json").is_file()
            if finished or _age_days(path) >= days:
                why = "its training has ended" if finished else f"untouched for {days:g} days"
                pieces.append(_piece("unfinished", path, why))
    return Plan(pieces=tuple(pieces))


def unneeded(num_last: int, spared: Collection[str], days: float) -> Plan:
    """Outputs, bentos and candidates' model files that no kept version needs.

    What no version at all needs, such as what a run left that was killed, goes once it is `days` old.

    Raises:
        DataMissing: a version of `spared` is not there.
        OutputCorrupt: a record or a pointer cannot be read.
    """
    for reference in spared:
        model_registry.version_of(reference)
    found = list(reachability.shelves())
    kept: list[Version] = []
    candidates: list[Version] = []
    for name in model_registry.names():
        reasons = reachability.kept(name, num_last, spared)
        for version in model_registry.versions(name):
            tag = model_registry.bento_of(version)
            if tag is not None:
                number = int(version.version)
                told = Version(name=name, version=number, bento=tag, why=reasons.get(number, ""))
                (kept if number in reasons else candidates).append(told)
    known = {one.bento for one in (*kept, *candidates)}
    packaged = {tag for _, shelf in found if (tag := reachability.bento_of(shelf)) is not None}
    # The version that comes anew under a bento's old name keeps it, and so does a process.
    needed = {one.bento for one in kept} | reachability.used_by_processes(known | packaged)
    freed = [
        one.model_copy(update={"why": "no alias, endpoint or rule keeps it"})
        for one in candidates
        if one.bento not in needed
    ]
    kept += [one.model_copy(update={"why": "in use"}) for one in candidates if one.bento in needed]
    is_young = _young(found, packaged - known, days)
    needed |= {tag for tag in packaged - known if is_young(bento_folder(tag))}
    wanted = reachability.reach_of(needed, found)
    once = reachability.reach_of({one.bento for one in freed}, found)
    outputs: list[Piece] = []
    for place, shelf in found:
        path = settings().home / place
        was_needed = once.holds(place, shelf)
        if wanted.holds(place, shelf) or (not was_needed and _age_days(path / "record.json") < days):
            continue
        why = _OF_FREED if was_needed else "no version needs it"
        # Before the output, whose record names them: a gc that is killed between finds them again.
        outputs += [*_model_files(shelf, wanted.runs, why), _piece("output", path, why)]
    bentos = [
        _piece("bento", bento_folder(tag), _OF_FREED if tag in known else "no version needs it")
        for tag in sorted((known | packaged) - needed)
        if bento_folder(tag).is_dir()
    ]
    # Those of no version first: on a full disk they make the room that the registry needs for a tag.
    outputs.sort(key=lambda piece: piece.why == _OF_FREED)
    gone = {piece.place for piece in bentos}
    freed = [one for one in freed if _told(bento_folder(one.bento)) in gone]
    return Plan(pieces=(*outputs, *bentos), freed=tuple(freed), kept=tuple(kept))


def free(plan: Plan, on_piece: Callable[[Piece], None] = lambda piece: None) -> list[Piece]:
    """Afterwards the pieces are gone, but for those that a living process works on. Returns those that went.

    Freed versions are tagged so first: no version ever looks whole that is not.
    """
    sweep()
    when = time.strftime("%Y-%m-%d", time.gmtime())
    went = [piece for piece in plan.pieces if piece.why != _OF_FREED and _take(piece, on_piece)]
    for version in plan.freed:
        mlflow_runs.client().set_model_version_tag(version.name, str(version.version), model_registry.FREED, when)
    went += [piece for piece in plan.pieces if piece.why == _OF_FREED and _take(piece, on_piece)]
    for name in {one.name for one in plan.freed}:
        _mend_latest(name)
    return went


@contextlib.contextmanager
def nobody_promotes() -> Iterator[None]:
    """Inside the `with` block the champion of no name changes on this machine."""
    with contextlib.ExitStack() as stack:
        for name in model_registry.names():
            stack.enter_context(promotions.changing(name))
        yield


def sweep() -> None:
    """Remove what a killed gc had moved aside."""
    for folder in (settings().home / _ASIDE, Path(os.environ["BENTOML_HOME"]) / _ASIDE):
        shutil.rmtree(folder, ignore_errors=True)


def _take(piece: Piece, on_piece: Callable[[Piece], None]) -> bool:
    path = settings().home / piece.place
    stage = path.parent.name if piece.kind == "output" else "train" if piece.kind == "unfinished" else None
    try:
        with stage_store.locked(stage, path.name[:_KEY]) if stage else contextlib.nullcontext():
            _remove(path, Path(os.environ["BENTOML_HOME"]) if piece.kind == "bento" else settings().home)
    except (Timeout, FileNotFoundError):
        return False  # somebody works on it, or has removed it
    on_piece(piece)
    return True


def _remove(path: Path, root: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    aside = root / _ASIDE / f"{path.parent.name}-{path.name}-{os.getpid()}"
    try:
        while not aside.exists():
            aside.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.rename(aside)
            except FileNotFoundError:
                if not path.exists():
                    raise
                # Another gc has swept in between.
    except FileNotFoundError:
        raise
    except OSError:
        # No room for a folder's name, or it is another disk: the file by which it counts as whole goes first.
        for name in ("record.json", "bento.yaml"):
            (path / name).unlink(missing_ok=True)
        aside = path
    with contextlib.suppress(FileNotFoundError):  # another gc sweeps
        shutil.rmtree(aside)


def _mend_latest(name: str) -> None:
    """BentoML's note of the newest bento names one that is there, or there is no note."""
    folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / name
    latest = folder / "latest"
    if not latest.is_file() or (folder / latest.read_text(encoding="utf-8").strip()).is_dir():
        return
    champion = model_registry.bento_of(model_registry.champion(name))
    if champion is not None and bento_folder(champion).is_dir():
        latest.write_text(champion.split(":")[1], encoding="utf-8")
    else:
        latest.unlink()


def _model_files(shelf: stage_store.Shelf, wanted: Collection[str], why: str) -> Iterator[Piece]:
    """The folders of model files that candidates' runs hold here. The runs, their figures and tables stay."""
    for candidate in shelf.record["candidates"] if shelf.stage == "compress" else ():
        if candidate["run_id"] in wanted:
            continue
        folder = _artifacts(candidate["run_id"])
        if folder is None or not folder.is_relative_to(settings().home):
            continue
        for path in sorted(folder.glob("*/")):
            yield _piece("model file", path, why)


def _artifacts(run_id: str) -> Path | None:
    from mlflow.exceptions import MlflowException

    try:
        uri = urlparse(mlflow_runs.client().get_run(run_id).info.artifact_uri)
    except MlflowException:
        return None
    return Path(unquote(uri.path)) if uri.scheme == "file" else None


def _young(
    found: Collection[tuple[str, stage_store.Shelf]], tags: Collection[str], days: float
) -> Callable[[Path], bool]:
    """Whether the bento of a folder was packaged within `days`, by the output that says so."""
    ages = {
        bento_folder(tag): _age_days(settings().home / place / "record.json")
        for place, shelf in found
        if (tag := reachability.bento_of(shelf)) in tags and tag is not None
    }
    return lambda folder: ages[folder] < days


def _piece(kind: Kind, path: Path, why: str) -> Piece:
    return Piece(kind=kind, place=_told(path), size_bytes=size_of(path), why=why)


def _told(path: Path) -> str:
    home = settings().home
    return str(path.relative_to(home)) if path.is_relative_to(home) else str(path)


def _age_days(path: Path) -> float:
    """Since anything in it was written."""
    newest = 0.0
    for one in (path, *path.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, one.lstat().st_mtime)
    return (time.time() - newest) / _DAY_S
