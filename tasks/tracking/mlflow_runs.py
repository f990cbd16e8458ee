"""MLflow: where runs are logged and versions registered."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bloomery.tasks.infrastructure.settings import settings

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from bloomery.data_contracts.records.records import ResourceUsage

STAGE_KEY = "bloomery.stage_key"


@functools.cache
def client() -> MlflowClient:
    """The client of this process. A local store is made once, under a lock, and set up for several writers."""
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    from mlflow import MlflowClient, set_tracking_uri

    uri = settings().tracking_uri
    set_tracking_uri(uri)
    if not settings().tracking_is_local:
        return MlflowClient(uri)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(database.with_suffix(".lock")):
        connected = MlflowClient(uri)  # which makes the tables
        connected.search_experiments(max_results=1)
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            # Readers then do not stop a writer, and logging takes half the time.
            connection.execute("PRAGMA journal_mode=WAL")
    return connected


def ensure_experiment(name: str) -> str:
    """The id of the experiment of that name, made if need be."""
    from mlflow.exceptions import MlflowException

    found = client().get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    place = (settings().home / "mlflow" / "artifacts" / name).as_uri() if settings().tracking_is_local else None
    try:
        # The tag opens the pages that matter for models trained from scratch.
        return client().create_experiment(
            name, artifact_location=place, tags={"mlflow.experimentKind": "custom_model_development"}
        )
    except MlflowException:
        found = client().get_experiment_by_name(name)  # another run has made it in the meantime
        if found is None:
            raise
        return str(found.experiment_id)


@contextmanager
def logged_run(
    experiment_name: str, run_name: str, stage_key: str, tags: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A run that ends FINISHED, or FAILED on an exception. Yields its id.

    Runs of the same name that a killed process left RUNNING for `stage_key` are ended first: the caller holds the lock
    of that key, so nobody works on them.
    """
    experiment_id = ensure_experiment(experiment_name)
    _end_orphans(experiment_id, stage_key, run_name)
    run = client().create_run(
        experiment_id,
        run_name=run_name,
        tags={STAGE_KEY: stage_key, "mlflow.source.name": "bloomery", **(tags or {})},
    )
    run_id = run.info.run_id
    try:
        yield run_id
    except BaseException:
        client().set_terminated(run_id, "FAILED")
        raise
    client().set_terminated(run_id, "FINISHED")


def _end_orphans(experiment_id: str, stage_key: str, run_name: str) -> None:
    orphans = client().search_runs(
        [experiment_id],
        f"tags.`{STAGE_KEY}` = '{stage_key}' and attributes.status = 'RUNNING' and attributes.run_name = '{run_name}'",
    )
    for orphan in orphans:
        client().set_terminated(orphan.info.run_id, "KILLED")


def adopt_runs(experiment_name: str, stage_key: str, run_id: str, *, tag: str) -> None:
    """Afterwards the runs with `tag` that a killed process left for `stage_key` lie below `run_id`; none goes on.

    The caller holds the lock of that key, so nobody works on them.
    """
    found = client().search_runs([ensure_experiment(experiment_name)], f"tags.`{STAGE_KEY}` = '{stage_key}'")
    for left in found:
        if tag not in left.data.tags:
            continue
        client().set_tag(left.info.run_id, "mlflow.parentRunId", run_id)
        if left.info.status == "RUNNING":
            client().set_terminated(left.info.run_id, "KILLED")


def log_metrics(run_id: str, figures: Mapping[str, float], step: int = 0) -> None:
    log_metric_steps(run_id, [(step, figures)])


def log_resource_usage(run_id: str, effort: ResourceUsage, start: str = "") -> None:
    """Figures of what a stage took, whose names begin with `start`, and how its energy is known."""
    log_metrics(
        run_id, {f"{start}{name}": getattr(effort, name) for name in ("seconds", "processor_seconds", "joules")}
    )
    how = "measured" if effort.is_measured else "estimated from the seconds of the processors"
    client().set_tag(run_id, f"{start}joules", how)


def log_metric_steps(run_id: str, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Metrics of many steps in one request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for step, figures in steps for name, value in figures.items()]
    for start in range(0, len(metrics), 1000):
        client().log_batch(run_id, metrics=metrics[start : start + 1000])


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    client().log_batch(run_id, params=[Param(name, str(value)[:6000]) for name, value in params.items()])


def run_exists(run_id: str) -> bool:
    """Whether the run is in the registry, whole and not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        run = client().get_run(run_id)
    except MlflowException:
        return False
    return run.info.status == "FINISHED" and run.info.lifecycle_stage == "active"
