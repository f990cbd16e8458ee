"""Which version of a name serves, since when and why: the registry's alias, its history, and the endpoints' pointer.

The alias `champion` is what counts. The history is kept beside it, as tags of the registered model, so that everyone
who sees the registry sees it, too. The pointer is what the endpoints of this machine follow; it is made from the alias.
"""

from __future__ import annotations

import contextlib
import getpass
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from filelock import FileLock

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.serving.champion_pointer import POINTER, Following, Pointer, read_followings, write_pointer
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.tethered_process import is_running
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_TAG = "promotion."
ROLLED_BACK = "rolled back"
_MOST_LETTERS = 1_000  # MLflow keeps 5,000 of a tag
Action = Literal["run", "approve", "promote", "rollback", "found", "refuse"]


class Promotion(Document):
    """One change of the champion, or a version that a person refused instead of the champion `replaced`.

    `found` is a change that was made elsewhere, or broken off, and seen later.
    """

    number: int
    at: datetime
    by: str
    action: Action
    version: int
    replaced: int | None
    bento: str
    what: str  # the version's figures in words
    why: str


@contextlib.contextmanager
def changing(name: str) -> Iterator[None]:
    """Inside the `with` block nobody else on this machine changes the champion of `name`."""
    with FileLock(settings().home / f"promote-{name}.lock"):
        yield


def history(name: str) -> list[Promotion]:
    """All changes of the champion and all refusals by a person, oldest first."""
    tags = mlflow_runs.client().get_registered_model(name).tags
    return sorted(
        (Promotion.model_validate_json(text) for key, text in tags.items() if key.startswith(_TAG)),
        key=lambda promotion: promotion.number,
    )


def make_champion(version: ModelVersion, action: Action, why: str, by: str | None = None) -> Promotion | None:
    """Afterwards the alias, the history and the pointer name `version`. Call it inside `changing`.

    Returns None where it was the champion before.
    """
    name = version.name
    _catch_up(name)
    former = registry.champion(name)
    promotion = None
    if former is None or former.version != version.version:
        mlflow_runs.client().set_registered_model_alias(name, registry.CHAMPION, version.version)
        mlflow_runs.client().set_model_version_tag(name, version.version, "release", "promoted")
        promotion = _remember(version, None if former is None else int(former.version), action, why, by)
    point(version)
    return promotion


def before_the_champion(name: str) -> tuple[ModelVersion, ModelVersion]:
    """The champion, and the version that served before it, rollbacks undone. Call it inside `changing`.

    Raises:
        DataMissing: the name has no champion, or the registry has lost the version before.
        ReleaseRefused: no version served before.
    """
    champion = registry.version_of(f"{name}@{registry.CHAMPION}")
    _catch_up(name)
    former = former_of(name)
    if former is None:
        raise ReleaseRefused(
            f"{name} version {champion.version} is the first that served",
            required="a champion that replaced another version",
            where="the history of promotions; `bloomery history` shows it",
            remedy=f"promote the version that you want: bloomery promote {name}:VERSION",
        )
    return champion, registry.version_of(f"{name}:{former}")


def former_of(name: str) -> int | None:
    """The number of the version that served before the champion, rollbacks undone, as far as the history tells."""
    champion = registry.champion(name)
    served: list[int] = []
    for promotion in _changes(name):
        if promotion.action == "rollback":
            while served and served.pop() != promotion.version:
                pass
        served.append(promotion.version)
    now = None if champion is None else int(champion.version)
    return next((version for version in reversed(served) if version != now), None)


def roll_back(champion: ModelVersion, former: ModelVersion, why: str) -> Promotion | None:
    """Afterwards `former` serves again, and no run promotes `champion` by itself. Call it inside `changing`."""
    promotion = make_champion(former, "rollback", why)
    mlflow_runs.client().set_model_version_tag(
        champion.name, champion.version, "release", f"{ROLLED_BACK}: {why}"[:4000]
    )
    return promotion


def folder_of(name: str) -> Path:
    """Where the pointer of a name lies."""
    return settings().home / "served" / name


def point_to_champion(name: str) -> Path:
    """Afterwards the pointer says what the alias says. Returns the pointer's place."""
    with changing(name):
        return point(registry.version_of(f"{name}@{registry.CHAMPION}"))


def point(version: ModelVersion) -> Path:
    """Afterwards the endpoints of this machine follow to `version`. Returns the pointer's place."""
    tag = version.tags[registry.BENTO]
    artifacts = artifacts_folder(tag)
    path = folder_of(version.name) / POINTER
    pointer = Pointer(
        name=version.name,
        version=int(version.version),
        bento=tag,
        artifacts=str(artifacts),
        manifest_sha256=digest_of_file(artifacts / "manifest.json"),
    )
    write_pointer(path, pointer)
    return path


def followers(name: str) -> list[Following]:
    """The processes of this machine that answer for `name`; what the ended ones have left is removed."""
    living = []
    for path, following in read_followings(folder_of(name)).items():
        if following.host != socket.gethostname():
            continue
        if is_running(following.pid, following.started):
            living.append(following)
        else:
            path.unlink(missing_ok=True)
    return living


def served_at(name: str) -> list[str]:
    """The addresses at which this machine answers for `name`, as far as this user may see them."""
    found = set()
    for follower in followers(name):
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(follower.pid)
            for process in (worker, *worker.parents()[:1]):
                for one in process.net_connections(kind="inet"):
                    if one.status == psutil.CONN_LISTEN:
                        host = "127.0.0.1" if one.laddr.ip in ("0.0.0.0", "::") else one.laddr.ip
                        found.add(f"http://{f'[{host}]' if ':' in host else host}:{one.laddr.port}")
    return sorted(found)


def wait_for_followers(name: str, bento: str, timeout_s: float = 30.0) -> list[Following]:
    """The processes that answer for `name`, once each has taken `bento` or refused it, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = followers(name)
        if all(bento in (one.bento, one.refused) for one in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def remember_refusal(version: ModelVersion, champion: int | None, why: str, by: str) -> None:
    """Afterwards the history has that a person refused this version. Call it inside `changing`."""
    _catch_up(version.name)
    _remember(version, champion, "refuse", why, by)


def _changes(name: str) -> list[Promotion]:
    """Those of the champion, oldest first."""
    return [promotion for promotion in history(name) if promotion.action != "refuse"]


def _catch_up(name: str) -> None:
    """Where the alias names another version than the history's last, remember that, too."""
    champion = registry.champion(name)
    known = _changes(name)
    if champion is not None and (not known or known[-1].version != int(champion.version)):
        former = known[-1].version if known else None
        _remember(champion, former, "found", "the alias was set elsewhere, or a promotion was broken off", "unknown")


def _remember(version: ModelVersion, former: int | None, action: Action, why: str, by: str | None) -> Promotion:
    known = history(version.name)
    promotion = Promotion(
        number=known[-1].number + 1 if known else 1,
        at=datetime.now(UTC),
        by=by or f"{getpass.getuser()}@{socket.gethostname()}",
        action=action,
        version=int(version.version),
        replaced=former,
        bento=version.tags[registry.BENTO],
        what=(version.description or "")[:_MOST_LETTERS],
        why=why[:_MOST_LETTERS],
    )
    mlflow_runs.client().set_registered_model_tag(
        version.name, f"{_TAG}{promotion.number:06d}", promotion.model_dump_json()
    )
    return promotion
