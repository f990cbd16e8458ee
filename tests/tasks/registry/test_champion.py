"""The champion: its alias, history and pointer agree, and rollbacks last."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.serving.champion_pointer import (
    POINTER_FILE,
    FollowerStatus,
    read_pointer,
    write_follower_status,
)
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.registry import champion as promotions
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

pytestmark = pytest.mark.slow  # MLflow creates its database


@pytest.fixture
def registered(home: Path) -> Callable[[int], ModelVersion]:
    """Registers versions of `people`, each with a bento in the store."""
    run = mlflow_runs.client().create_run(mlflow_runs.ensure_experiment("people")).info.run_id

    def make(number: int) -> ModelVersion:
        tag = f"people:{number:016x}"
        artifacts_folder(tag).mkdir(parents=True)
        (artifacts_folder(tag) / "manifest.json").write_text(json.dumps({"tag": tag}))
        version = registry.register_version(
            "people", f"runs:/{run}/model", run, {registry.BENTO: tag}, f"version {number}"
        )
        assert int(version.version) == number
        return version

    return make


def promote(version: ModelVersion, reason: str = "better") -> None:
    with promotions.champion_lock("people"):
        promotions.make_champion(version, "promote", reason)


def roll_back(reason: str = "worse") -> int:
    with promotions.champion_lock("people"):
        champion, previous = promotions.champion_and_previous("people")
        promotions.roll_back(champion, previous, reason)
    return int(previous.version)


def test_promotions_and_rollbacks_change_history_and_pointer(registered: Callable[[int], ModelVersion]) -> None:
    versions = [registered(number) for number in (1, 2, 3)]
    for version in (*versions, versions[2]):
        promote(version)
    assert [roll_back(), roll_back()] == [2, 1]
    with pytest.raises(ReleaseRefused, match="is the first that served"):
        roll_back()
    promote(versions[2], "good after all")
    assert roll_back() == 1
    changes = [
        (promotion.action, promotion.replaced, promotion.version, promotion.reason)
        for promotion in promotions.promotion_history("people")
    ]
    assert changes == [
        ("promote", None, 1, "better"),
        ("promote", 1, 2, "better"),
        ("promote", 2, 3, "better"),
        ("rollback", 3, 2, "worse"),
        ("rollback", 2, 1, "worse"),
        ("promote", 1, 3, "good after all"),
        ("rollback", 3, 1, "worse"),
    ]
    pointer = read_pointer(promotions.pointer_folder("people") / POINTER_FILE)
    champion = registry.find_champion("people")
    assert champion is not None
    assert (
        (pointer.version, pointer.bento)
        == (int(champion.version), champion.tags[registry.BENTO])
        == (
            1,
            f"people:{1:016x}",
        )
    )
    assert registry.find_version("people:3").tags["release"] == "rolled back: worse"
    assert "people" in promotions.promotion_history("people")[0].bento
    assert os.environ.get("USER", "") in promotions.promotion_history("people")[0].by


def test_an_alias_set_elsewhere_is_recorded_and_followed(registered: Callable[[int], ModelVersion]) -> None:
    first, second, third = map(registered, (1, 2, 3))
    promote(first)
    mlflow_runs.client().set_registered_model_alias("people", registry.CHAMPION, second.version)
    assert read_pointer(promotions.write_champion_pointer("people")).version == 2
    promote(third)
    assert [(promotion.action, promotion.version) for promotion in promotions.promotion_history("people")] == [
        ("promote", 1),
        ("found", 2),
        ("promote", 3),
    ]


def test_ended_followers_are_removed(registered: Callable[[int], ModelVersion]) -> None:
    import socket

    import psutil

    living = FollowerStatus(
        host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time(), bento="people:one"
    )
    folder = promotions.pointer_folder("people")
    write_follower_status(folder, living)
    ended_file = write_follower_status(folder, living.model_copy(update={"pid": os.getppid(), "started": 1.0}))
    assert promotions.wait_for_followers("people", "people:one", timeout_s=1) == [living]
    assert not ended_file.exists()
