"""Logs MLflow runs: the client, experiments, runs that survive kills, and batches of metrics."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import re
import sqlite3
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking import local_database
from bloomery.tasks.tracking.artifact_locations import artifact_location, correct_artifact_locations
from bloomery.tasks.tracking.local_database import DatabaseUnreadable

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, Run

    from bloomery.data_contracts.records.records import ResourceUsage

STAGE_KEY = "bloomery.stage_key"
_MAX_METRIC_LENGTH = 200  # of a column's name; a prefix may stand in front of it


@functools.cache
def client() -> MlflowClient:
    """The client of this process. A local database is created once, under a lock, and set up for several writers."""
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
        local_client = MlflowClient(uri)  # creates the tables
        local_client.search_experiments(max_results=1)
        with closing(sqlite3.connect(database, timeout=60)) as connection:
            # Readers do not block a writer then, and logging takes half the time.
            connection.execute("PRAGMA journal_mode=WAL")
            if database.is_relative_to(settings().home):  # several state folders may share one elsewhere
                correct_artifact_locations(connection, settings().home)
    return local_client


def ensure_experiment(name: str) -> str:
    """Returns the id of the experiment, which is created if it does not exist."""
    from mlflow.exceptions import MlflowException

    experiment = client().get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = artifact_location(settings().home, name) if settings().tracking_is_local else None
    try:
        # The tag makes MLflow show the pages for models that are trained from scratch.
        return client().create_experiment(
            name, artifact_location=location, tags={"mlflow.experimentKind": "custom_model_development"}
        )
    except MlflowException:
        experiment = client().get_experiment_by_name(name)  # another run has created it in the meantime
        if experiment is None:
            raise
        return str(experiment.experiment_id)


@contextmanager
def logged_run(
    experiment_name: str, run_name: str, stage_key: str, tags: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Yields the id of a new run, which ends as FINISHED, or as FAILED after an exception.

    Runs of the same name that a killed process left RUNNING for `stage_key` are ended first: the caller holds the lock
    of that key, so no other process works on them.
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
    """Moves the runs with `tag` that a killed process left for `stage_key` below `run_id`, and ends those RUNNING.

    The caller holds the lock of that key, so no other process works on them.
    """
    runs = client().search_runs([ensure_experiment(experiment_name)], f"tags.`{STAGE_KEY}` = '{stage_key}'")
    for run in runs:
        if tag not in run.data.tags:
            continue
        client().set_tag(run.info.run_id, "mlflow.parentRunId", run_id)
        if run.info.status == "RUNNING":
            client().set_terminated(run.info.run_id, "KILLED")


def metric_names(names: Collection[str]) -> dict[str, str]:
    """Returns distinct names that MLflow accepts for metrics, or as their last part, by the given names.

    It takes letters, digits, underscores, dashes, points, colons and spaces, at most 250 of them.
    """
    allowed: dict[str, str] = {}
    for name in sorted(names):
        stem = re.sub(r"[^\w.\- :]", "_", name.strip("()"))[:_MAX_METRIC_LENGTH]
        stem = stem if stem.strip(".") else "_"
        numbered = (stem if number == 1 else f"{stem}_{number}" for number in itertools.count(1))
        used_names = set(allowed.values())
        allowed[name] = next(candidate for candidate in numbered if candidate not in used_names)
    return allowed


def log_metrics(run_id: str, values: Mapping[str, float], step: int = 0) -> None:
    log_metric_steps(run_id, [(step, values)])


def log_resource_usage(run_id: str, usage: ResourceUsage, prefix: str = "") -> None:
    """Logs the resource usage of a stage under names with the given prefix, and a tag with the source of its energy."""
    log_metrics(run_id, {f"{prefix}{name}": getattr(usage, name) for name in ("seconds", "cpu_seconds", "joules")})
    source = "measured" if usage.is_measured else "estimated from CPU seconds"
    client().set_tag(run_id, f"{prefix}joules", source)


def log_metric_steps(run_id: str, steps: Sequence[tuple[int, Mapping[str, float]]]) -> None:
    """Logs the metrics of many steps, up to 1,000 values per request."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [Metric(name, value, now, step) for step, values in steps for name, value in values.items()]
    for start in range(0, len(metrics), 1000):
        client().log_batch(run_id, metrics=metrics[start : start + 1000])


def log_params(run_id: str, params: Mapping[str, object]) -> None:
    from mlflow.entities import Param

    client().log_batch(run_id, params=[Param(name, str(value)[:6000]) for name, value in params.items()])


def log_training_data(run_id: str, dataset: Dataset) -> None:
    """Logs the data that the run trains on.

    MLflow looks for the data set, and then inserts it. If another run has inserted it in between, the second attempt
    finds it.
    """
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    try:
        client().log_inputs(run_id, inputs)
    except MlflowException:
        client().log_inputs(run_id, inputs)


def find_run(run_id: str) -> Run | None:
    """Returns the run; None if there is none, or it was deleted for good."""
    from mlflow.exceptions import MlflowException

    try:
        return client().get_run(run_id)
    except MlflowException:
        return None


def run_exists(run_id: str) -> bool:
    """Whether the run exists, has finished and is not deleted."""
    with suppress(DatabaseUnreadable):
        return local_database.is_finished_run(run_id)
    run = find_run(run_id)
    return run is not None and run.info.status == "FINISHED" and run.info.lifecycle_stage == "active"


def read_metrics(run_id: str) -> dict[str, float]:
    """Returns the latest value of each metric of a run, by name; none if there is no such run."""
    with suppress(DatabaseUnreadable):
        return local_database.read_metrics(run_id)
    run = find_run(run_id)
    return {} if run is None else dict(sorted(run.data.metrics.items()))
