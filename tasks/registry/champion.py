"""The champion of a name, the version that serves: the registry's alias, its history, and the endpoints' pointer.

The alias `champion` is authoritative. The history is stored in tags of the registered model, visible to everyone who
uses the registry. The pointer is derived from the alias; the endpoints of this machine follow it.
"""

from __future__ import annotations

import contextlib
import getpass
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil
from filelock import FileLock
from pydantic import ValidationError

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import OutputCorrupt, ReleaseRefused
from bloomery.data_contracts.serving.champion_pointer import (
    POINTER_FILE,
    ChampionPointer,
    FollowerStatus,
    read_follower_statuses,
    write_pointer,
)
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.infrastructure.tethered_process import is_running
from bloomery.tasks.registry.model_registry import (
    CHAMPION,
    bento_of,
    find_champion,
    find_version,
    read_model_tags,
    require_bento_tag,
)
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion

_TAG = "promotion."
_PROMOTION_TAG = re.compile(r"promotion\.\d{6}")
ROLLED_BACK = "rolled back"
_MAX_LETTERS = 1_000  # MLflow stores 5,000 of a tag
Action = Literal["run", "approve", "promote", "rollback", "found", "refuse"]


class Promotion(Document):
    """A change of the champion, or a refusal by a person, after which the champion `replaced` stayed.

    The action `found` is a change that was made elsewhere, or interrupted, and recorded later.
    """

    number: int
    at: datetime
    by: str
    action: Action
    version: int
    replaced: int | None
    bento: str  # empty for a version that another tool has registered
    description: str  # of the version
    reason: str


@contextlib.contextmanager
def champion_lock(name: str) -> Iterator[None]:
    """Locks the champion of `name`, so that no other process of this machine changes it inside the `with` block."""
    with FileLock(settings().home / f"promote-{name}.lock"):
        yield


def promotion_history(name: str) -> list[Promotion]:
    """All changes of the champion and all refusals by a person, oldest first."""
    tags = read_model_tags(name)
    return sorted(
        (_parse_promotion(name, key, text) for key, text in tags.items() if _PROMOTION_TAG.fullmatch(key)),
        key=lambda promotion: promotion.number,
    )


def _parse_promotion(name: str, key: str, text: str) -> Promotion:
    try:
        return Promotion.model_validate_json(text)
    except ValidationError as failure:
        raise OutputCorrupt(
            f"the tag {key} of {name} cannot be read: {str(failure).splitlines()[0]}",
            required="the record of a promotion, as Bloomery has written it",
            where=f"the tags of the registered model {name}",
            remedy="restore the tag, or delete it with mlflow.MlflowClient().delete_registered_model_tag(NAME, KEY)",
        ) from failure


def make_champion(version: ModelVersion, action: Action, reason: str, by: str | None = None) -> Promotion | None:
    """Sets alias, history and pointer to `version`. Call it inside `champion_lock`.

    Returns None if it was the champion before.
    """
    name = version.name
    _record_foreign_change(name)
    previous = find_champion(name)
    promotion = None
    if previous is None or previous.version != version.version:
        mlflow_runs.client().set_registered_model_alias(name, CHAMPION, version.version)
        mlflow_runs.client().set_model_version_tag(name, version.version, "release", "promoted")
        promotion = _record(version, None if previous is None else int(previous.version), action, reason, by)
    point_to(version)
    return promotion


def champion_and_previous(name: str) -> tuple[ModelVersion, ModelVersion]:
    """The champion, and the version that served before it, with rollbacks undone. Call it inside `champion_lock`.

    Raises:
        DataMissing: the name has no champion, or the registry has lost the previous version.
        ReleaseRefused: no version served before.
    """
    champion = find_version(f"{name}@{CHAMPION}")
    _record_foreign_change(name)
    previous = previous_champion(name)
    if previous is None:
        raise ReleaseRefused(
            f"{name} version {champion.version} is the first that served",
            required="a champion that replaced another version",
            where="the history of promotions; `bloomery history` shows it",
            remedy=f"promote the version that you want: bloomery promote {name}:VERSION",
        )
    return champion, find_version(f"{name}:{previous}")


def previous_champion(name: str) -> int | None:
    """The number of the version that served before the champion, with rollbacks undone, if the history has one."""
    champion = find_champion(name)
    served: list[int] = []
    for promotion in _champion_changes(name):
        if promotion.action == "rollback":
            while served and served.pop() != promotion.version:
                pass
        served.append(promotion.version)
    current = None if champion is None else int(champion.version)
    return next((version for version in reversed(served) if version != current), None)


def roll_back(champion: ModelVersion, previous: ModelVersion, reason: str) -> Promotion | None:
    """Makes `previous` champion again, and tags `champion` so that no run promotes it. Call it in `champion_lock`."""
    promotion = make_champion(previous, "rollback", reason)
    mlflow_runs.client().set_model_version_tag(
        champion.name, champion.version, "release", f"{ROLLED_BACK}: {reason}"[:4000]
    )
    return promotion


def pointer_folder(name: str) -> Path:
    """The folder of a name's pointer and of its followers' status."""
    return settings().home / "served" / name


def write_champion_pointer(name: str) -> Path:
    """Sets the pointer to the champion. Returns the path of the pointer."""
    with champion_lock(name):
        return point_to(find_version(f"{name}@{CHAMPION}"))


def point_to(version: ModelVersion) -> Path:
    """Sets the pointer to `version`, so that the endpoints of this machine switch to it. Returns the pointer's path."""
    tag = require_bento_tag(version)
    artifacts = artifacts_folder(tag)
    path = pointer_folder(version.name) / POINTER_FILE
    pointer = ChampionPointer(
        name=version.name,
        version=int(version.version),
        bento=tag,
        artifacts=str(artifacts),
        manifest_sha256=digest_of_file(artifacts / "manifest.json"),
    )
    write_pointer(path, pointer)
    return path


def list_followers(name: str) -> list[FollowerStatus]:
    """The living endpoint processes of this machine for `name`. Removes the status files of ended ones."""
    followers = []
    for path, status in read_follower_statuses(pointer_folder(name)).items():
        if status.host != socket.gethostname():
            continue
        if is_running(status.pid, status.started):
            followers.append(status)
        else:
            path.unlink(missing_ok=True)
    return followers


def endpoint_urls(name: str) -> list[str]:
    """The URLs of this machine's endpoints for `name`, as far as this user may see them."""
    urls = set()
    for follower in list_followers(name):
        with contextlib.suppress(psutil.Error):
            worker = psutil.Process(follower.pid)
            for process in (worker, *worker.parents()[:1]):
                for connection in process.net_connections(kind="inet"):
                    if connection.status == psutil.CONN_LISTEN:
                        ip, port = connection.laddr.ip, connection.laddr.port
                        host = "127.0.0.1" if ip in ("0.0.0.0", "::") else ip
                        urls.add(f"http://{f'[{host}]' if ':' in host else host}:{port}")
    return sorted(urls)


def wait_for_followers(name: str, bento: str, timeout_s: float = 30.0) -> list[FollowerStatus]:
    """The endpoint processes for `name`, once each has switched to `bento` or rejected it, or after the timeout."""
    deadline = time.monotonic() + timeout_s
    while True:
        followers = list_followers(name)
        is_settled = all(bento in (follower.bento, follower.refused_bento) for follower in followers)
        if is_settled or time.monotonic() > deadline:
            return followers
        time.sleep(0.05)


def record_refusal(version: ModelVersion, champion: int | None, reason: str, by: str) -> None:
    """Records in the history that a person refused this version. Call it inside `champion_lock`."""
    _record_foreign_change(version.name)
    _record(version, champion, "refuse", reason, by)


def _champion_changes(name: str) -> list[Promotion]:
    """Changes of the champion, oldest first."""
    return [promotion for promotion in promotion_history(name) if promotion.action != "refuse"]


def _record_foreign_change(name: str) -> None:
    """Records a champion that the history does not have yet."""
    champion = find_champion(name)
    changes = _champion_changes(name)
    if champion is not None and (not changes or changes[-1].version != int(champion.version)):
        previous = changes[-1].version if changes else None
        reason = "the alias was set elsewhere, or a promotion was interrupted"
        _record(champion, previous, "found", reason, "unknown")


def _record(version: ModelVersion, previous: int | None, action: Action, reason: str, by: str | None) -> Promotion:
    history = promotion_history(version.name)
    promotion = Promotion(
        number=history[-1].number + 1 if history else 1,
        at=datetime.now(UTC),
        by=by or f"{getpass.getuser()}@{socket.gethostname()}",
        action=action,
        version=int(version.version),
        replaced=previous,
        bento=bento_of(version) or "",
        description=(version.description or "")[:_MAX_LETTERS],
        reason=reason[:_MAX_LETTERS],
    )
    mlflow_runs.client().set_registered_model_tag(
        version.name, f"{_TAG}{promotion.number:06d}", promotion.model_dump_json()
    )
    return promotion
