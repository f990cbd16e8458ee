"""The champion: alias, history and pointer agree, rollbacks last, and shadows are compared."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.serving.champion_pointer import (
    POINTER_FILE,
    FollowerStatus,
    read_pointer,
    write_follower_status,
)
from bloomery.data_contracts.serving.prediction_log import LOG_FIELDS
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring import shadow_comparison
from bloomery.tasks.registry import champion as promotions
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

pytestmark = pytest.mark.slow  # MLflow makes its database


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


def promote(version: ModelVersion, why: str = "better") -> None:
    with promotions.champion_lock("people"):
        promotions.make_champion(version, "promote", why)


def roll_back(why: str = "worse") -> int:
    with promotions.champion_lock("people"):
        champion, previous = promotions.champion_and_previous("people")
        promotions.roll_back(champion, previous, why)
    return int(previous.version)


def test_promotions_and_rollbacks_change_history_and_pointer(registered: Callable[[int], ModelVersion]) -> None:
    one, two, three = map(registered, (1, 2, 3))
    for version in (one, two, three, three):
        promote(version)
    assert [roll_back(), roll_back()] == [2, 1]
    with pytest.raises(ReleaseRefused, match="is the first that served"):
        roll_back()
    promote(three, "good after all")
    assert roll_back() == 1
    changes = [(one.action, one.replaced, one.version, one.why) for one in promotions.promotion_history("people")]
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
    one, two, three = map(registered, (1, 2, 3))
    promote(one)
    mlflow_runs.client().set_registered_model_alias("people", registry.CHAMPION, two.version)
    assert read_pointer(promotions.write_champion_pointer("people")).version == 2
    promote(three)
    assert [(one.action, one.version) for one in promotions.promotion_history("people")] == [
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
    ended = write_follower_status(folder, living.model_copy(update={"pid": os.getppid(), "started": 1.0}))
    assert promotions.wait_for_followers("people", "people:one", timeout_s=1) == [living]
    assert not ended.exists()


def log_of(home: Path, rows: list[tuple[str, str, str, object]]) -> None:
    """Log predictions as (request, role, version, prediction)."""
    folder = home / "predictions" / "people" / "day=2026-01-01"
    folder.mkdir(parents=True, exist_ok=True)
    name = "value" if isinstance(rows[0][3], float) else "label"
    zeros = [0] * len(rows)
    table = pa.table(
        {
            "at": pa.array(range(len(rows)), LOG_FIELDS[0].type),
            "request": [row[0] for row in rows],
            "row": pa.array(zeros, pa.int32()),
            "version": [row[2] for row in rows],
            "role": [row[1] for row in rows],
            "seconds": [0.001] * len(rows),
            "run_seconds": [2e-5 if row[1] == "shadow" else 1e-5 for row in rows],
            "together": pa.array([1] * len(rows), pa.int32()),
            "answer": [{name: row[3]} for row in rows],
        }
    )
    pq.write_table(table, folder / f"{len(list(folder.iterdir())):06d}-1-1.parquet")


def test_a_shadow_is_compared_on_the_rows_that_both_have_predicted(home: Path, tmp_path: Path) -> None:
    ours = [(f"r{n}", "champion", "people:a", "york" if n % 2 else "bath") for n in range(100)]
    theirs = [(f"r{n}", "shadow", "people:b", "york" if n % 2 or n < 20 else "bath") for n in range(5, 100)]
    log_of(home, ours)
    log_of(home, [*theirs, ("r7", "shadow", "people:other", "bath")][:-1])
    pq.write_table(
        pa.table({"request": [f"r{n}" for n in range(50)], "label": ["york" if n % 2 else "bath" for n in range(50)]}),
        tmp_path / "labels.parquet",
    )
    comparison = shadow_comparison.compare_versions("people", "people:a", None, tmp_path / "labels.parquet")
    assert (comparison.num_rows, comparison.challenger) == (95, "people:b")
    assert comparison.agreement == pytest.approx(1 - 7 / 95)
    assert comparison.num_labelled == 45
    assert (comparison.champion_score, comparison.challenger_score) == (1.0, pytest.approx(1 - 7 / 45))
    assert comparison.degradation is not None
    assert comparison.degradation.low < 7 / 45 < comparison.degradation.high
    assert any("2.00x" in line for line in shadow_comparison.describe_comparison(comparison))
    shadow_comparison.require_agreement("people", "people:a", "people:b", 95, 0.9)
    with pytest.raises(ReleaseRefused, match="has predicted 95 rows"):
        shadow_comparison.require_agreement("people", "people:a", "people:b", 96, 0.9)
    with pytest.raises(ReleaseRefused, match=r"agree on 92\.63%"):
        shadow_comparison.require_agreement("people", "people:a", "people:b", 95, 0.95)


def test_regression_values_are_compared_by_their_difference(home: Path, tmp_path: Path) -> None:
    log_of(home, [(f"r{n}", "champion", "people:a", float(n)) for n in range(40)])
    log_of(home, [(f"r{n}", "shadow", "people:b", n + 2.0) for n in range(40)])
    pq.write_table(
        pa.table({"request": [f"r{n}" for n in range(40)], "label": [n + 1.5 + n % 2 for n in range(40)]}),
        tmp_path / "labels.parquet",
    )
    comparison = shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.parquet")
    assert (comparison.agreement, comparison.rms_difference) == (None, 2.0)
    assert comparison.challenger_score == pytest.approx(0.5)
    assert comparison.degradation is not None
    assert comparison.degradation.value < -0.5


def test_missing_inputs_of_a_comparison_are_reported(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no row was predicted"):
        shadow_comparison.compare_versions("people", "people:a", None)
    log_of(home, [("r", "champion", "people:a", "york"), ("r", "shadow", "people:b", "york")])
    pq.write_table(pa.table({"request": ["s"], "label": ["york"]}), tmp_path / "labels.parquet")
    with pytest.raises(DataMissing, match="no label for any of the 1 rows"):
        shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.parquet")
    pq.write_table(pa.table({"id": ["s"]}), tmp_path / "labels.parquet")
    with pytest.raises(DataMissing, match="has no column label, request"):
        shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.parquet")
    with pytest.raises(DataMissing, match="cannot be read"):
        shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "nothing.parquet")
    assert settings().home == home
