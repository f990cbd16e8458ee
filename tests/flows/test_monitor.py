"""Drift in the prediction log starts a retraining, with a real Prefect server."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Bloomery = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow


def write_log(home: Path, tag: str, images: np.ndarray, predictions: pa.Table, at: datetime) -> None:
    """Writes a prediction log with one request for each image, and these predictions."""
    num = len(images)
    folder = home / "predictions" / "digits" / f"day={at:%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "at": pa.array([at] * num, pa.timestamp("us", "UTC")),
            "request": [f"{at.timestamp()}-{place}" for place in range(num)],
            "row": pa.array([0] * num, pa.int32()),
            "version": [tag] * num,
            "role": ["champion"] * num,
            "seconds": [0.001] * num,
            "columns": [{"image": image} for image in images.tolist()],
            "prediction": predictions.to_pylist(),
        }
    )
    pq.write_table(table, folder / f"{at:%H%M%S}-1-1.parquet")


@pytest.fixture
def server(home: Path, prefect: str) -> Iterator[str]:
    """Returns the address of a running Prefect server, which this process uses during the test."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: prefect}):  # Prefect reads the environment only once
        yield prefect


@pytest.fixture
def create_deployment(server: str) -> Iterator[Callable[[], UUID]]:
    """Creates `pipeline/digits`, which is deleted after the test because later tests use the same server."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        created: list[UUID] = []

        def create() -> UUID:
            flow = client.create_flow_from_name("pipeline")
            created.append(client.create_deployment(flow_id=flow, name="digits", parameters={"recipe": "digits"}))
            return created[-1]

        yield create
        for deployment in created:
            client.delete_deployment(deployment)


def list_runs(deployment: UUID) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId

    with get_client(sync_client=True) as client:
        of_it = FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[deployment]))
        return client.read_flow_runs(flow_run_filter=of_it)


def test_drift_starts_one_retraining_and_normal_data_or_a_second_event_start_none(
    copy: Path,
    server: str,
    create_deployment: Callable[[], UUID],
    forked_bloomery: Bloomery,
    finished_run: Any,
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey, FlowRunFilter, FlowRunFilterName
    from prefect.events import Event

    from bloomery.data_contracts.errors import DataMissing
    from bloomery.flows.services.prefect_automations import ensure_retraining

    tag = finished_run[1]["bento"]["tag"]
    rows = pq.read_table(next(copy.glob("stages/validate/*/rows.parquet")))
    images = np.array(rows["image"].to_pylist())
    now = datetime.now(UTC)
    predictions = pq.read_table(copy / finished_run[1]["bento"]["choice"]["candidate"]["predictions_uri"])
    predictions = predictions.select(["prediction", "probabilities"]).rename_columns(["label", "probabilities"])
    sample = predictions.take(np.random.default_rng(0).integers(0, predictions.num_rows, len(images)))
    write_log(copy, tag, images, sample, now - timedelta(hours=3))
    write_log(copy, tag, np.minimum(images + 5, 16), predictions.take([0] * len(images)), now - timedelta(minutes=30))

    with pytest.raises(DataMissing, match="no deployment pipeline/digits"):
        ensure_retraining("digits")
    deployment = create_deployment()
    automation_id = ensure_retraining("digits", timedelta(hours=1))
    assert ensure_retraining("digits", timedelta(hours=2)) == automation_id
    with get_client(sync_client=True) as client:
        (automation,) = client.read_automations_by_name("retrain digits")
    assert automation.trigger.within == timedelta(hours=2)
    environment = {"PREFECT_API_URL": server}
    # The server loads automations a moment after they change, long before this check has ended.
    normal = forked_bloomery(copy, "monitor", "digits", "--since", "4h", "--until", "2h", "--json", **environment)
    assert normal.returncode == 0, normal.stdout + normal.stderr
    report = json.loads(normal.stdout)
    assert (report["num_rows"], report["version"]) == (len(images), 1)
    assert [alarm for alarm in report["alerts"] if alarm["kind"] == "drift"] == []

    drifted = forked_bloomery(copy, "monitor", "digits", "--since", "1h", "--fail-on-drift", **environment)
    assert drifted.returncode == 3, drifted.stdout + drifted.stderr
    for words in ("image has drifted", "(prediction) has drifted", "no labels have arrived"):
        assert words in drifted.stdout
    # The event of the next check, while the first training may still run.
    event = Event(event="bloomery.drift", resource={"prefect.resource.id": "bloomery.model.digits"})
    httpx.post(f"{server}/events", json=[event.model_dump(mode="json")], trust_env=False).raise_for_status()
    deadline = time.monotonic() + 30
    while not list_runs(deployment) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(3)
    (started,) = list_runs(deployment)
    assert started.parameters == {"recipe": "digits"}
    assert started.created_by is not None
    assert started.created_by.type == "AUTOMATION"

    with get_client(sync_client=True) as client:
        of_digits = ArtifactFilter(key=ArtifactFilterKey(any_=["monitor-digits"]))
        artifacts = client.read_artifacts(artifact_filter=of_digits)
        checks = client.read_flow_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_="digits v1: ")))
    assert len(artifacts) == len(checks) == 2
    assert any("data:image/png;base64," in str(item.data) for item in artifacts)
    assert 'model="digits"' in (copy / "metrics" / "digits.prom").read_text()
    assert ensure_retraining("digits", is_enabled=False) is None
    with get_client(sync_client=True) as client:
        assert client.read_automations_by_name("retrain digits") == []


def test_an_invalid_time_and_an_empty_window_are_reported(tmp_path: Path, forked_bloomery: Bloomery) -> None:
    completed = forked_bloomery(tmp_path, "monitor", "digits", "--since", "yesterday", "--json")
    assert (completed.returncode, json.loads(completed.stdout)["error"]) == (2, "SettingInvalid")
    completed = forked_bloomery(tmp_path, "monitor", "digits", "--since", "1h", "--until", "2h")
    assert completed.returncode == 2
    assert "a time before --until" in completed.stderr
