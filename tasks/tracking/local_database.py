"""Reads runs and versions from MLflow's local database, without MLflow, whose import takes two seconds.

Commands that only look up what exists use it. Whatever it cannot read with certainty it leaves to MLflow's client, by
`DatabaseUnreadable`: another tracking store or registry, another layout of the tables, and a database in use by a
migration.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking.model_versions import ModelVersion

_TIMEOUT_S = 60.0
_PREFIX = "sqlite:///"
# With these the client uses a workspace, or another registry than the tracking store.
_CLIENT_VARIABLES = ("MLFLOW_ENABLE_WORKSPACES", "MLFLOW_WORKSPACE", "MLFLOW_REGISTRY_URI")
_PROMPT = "mlflow.prompt.is_prompt"  # the tag of registered prompts, which are no models
_VERSIONS = (
    "select v.name, v.version, v.description, v.creation_time, v.source from model_versions v "
    "where v.workspace = 'default' and coalesce(v.current_stage, '') != 'Deleted_Internal' and v.name = ?"
)
_FOLDER = "select storage_location from model_versions where workspace = 'default' and name = ? and version = ?"
_VERSION_TAGS = "select key, value from model_version_tags where workspace = 'default' and name = ? and version = ?"
_ALIASES = "select version from registered_model_aliases where workspace = 'default' and name = ? and alias = ?"
_NAMES = (
    "select name from registered_models m where m.workspace = 'default' and not exists (select 1 from "
    "registered_model_tags t where t.workspace = m.workspace and t.name = m.name and t.key = ?) order by name"
)
_MODEL_TAGS = "select key, value from registered_model_tags where workspace = 'default' and name = ?"
_RUN = "select status, lifecycle_stage from runs where run_uuid = ?"
_METRICS = "select key, value, is_nan from latest_metrics where run_uuid = ? order by key"


class DatabaseUnreadable(Exception):
    """The tracking store is no local database with the known tables."""


def list_versions(name: str) -> list[ModelVersion]:
    """Returns all versions of a model, newest first; none if there is no such model."""
    with _connect() as connection:
        return [] if connection is None else _select_versions(connection, f"{_VERSIONS} order by v.version desc", name)


def find_version(name: str, number: str) -> ModelVersion | None:
    if not number.isdecimal():
        raise DatabaseUnreadable(number)
    with _connect() as connection:
        return None if connection is None else _select_version(connection, name, int(number))


def find_by_alias(name: str, alias: str) -> ModelVersion | None:
    if alias.lower() == "latest":  # MLflow resolves it by itself
        raise DatabaseUnreadable(alias)
    with _connect() as connection:
        if connection is None:
            return None
        row = connection.execute(_ALIASES, (name, alias)).fetchone()
        return None if row is None else _select_version(connection, name, int(row[0]))


def find_model_folder(name: str, number: int) -> Path | None:
    """Returns the folder of a version's files; None if they lie elsewhere."""
    with _connect() as connection:
        row = None if connection is None else connection.execute(_FOLDER, (name, number)).fetchone()
    address = urlsplit(row[0] or "") if row else None
    is_local = address is not None and address.scheme in ("", "file") and not address.netloc
    return Path(url2pathname(address.path)) if address is not None and is_local and address.path else None


def list_names() -> list[str]:
    """Returns the names of all registered models."""
    with _connect() as connection:
        return [] if connection is None else [row[0] for row in connection.execute(_NAMES, (_PROMPT,))]


def read_model_tags(name: str) -> dict[str, str]:
    """Returns the tags of a registered model; none if there is no such model."""
    with _connect() as connection:
        return {} if connection is None else dict(connection.execute(_MODEL_TAGS, (name,)))


def is_finished_run(run_id: str) -> bool:
    """Whether the run exists, has finished and is not deleted."""
    with _connect() as connection:
        return connection is not None and connection.execute(_RUN, (run_id,)).fetchone() == ("FINISHED", "active")


def read_metrics(run_id: str) -> dict[str, float]:
    """Returns the latest value of each metric of a run. Raises DatabaseUnreadable if there is no such run."""
    with _connect() as connection:
        if connection is None or connection.execute(_RUN, (run_id,)).fetchone() is None:
            raise DatabaseUnreadable(run_id)
        rows: list[Any] = connection.execute(_METRICS, (run_id,)).fetchall()
        return {key: float("nan") if is_nan else float(value) for key, value, is_nan in rows}


@contextmanager
def _connect() -> Iterator[sqlite3.Connection | None]:
    """Yields a connection that only reads, or None if nothing was ever registered here."""
    uri = settings().tracking_uri
    is_plain = uri.startswith(_PREFIX) and "?" not in uri  # neither a driver nor options of SQLAlchemy
    if not is_plain or any(os.environ.get(name) for name in _CLIENT_VARIABLES):
        raise DatabaseUnreadable(uri)
    database = Path(uri.removeprefix(_PREFIX))
    if not database.is_file():
        yield None
        return
    try:
        with closing(sqlite3.connect(database, timeout=_TIMEOUT_S)) as connection:
            connection.execute("pragma query_only = on")
            yield connection
    except sqlite3.Error as failure:
        raise DatabaseUnreadable(str(database)) from failure


def _select_version(connection: sqlite3.Connection, name: str, number: int) -> ModelVersion | None:
    return next(iter(_select_versions(connection, f"{_VERSIONS} and v.version = ?", name, number)), None)


def _select_versions(connection: sqlite3.Connection, query: str, *values: Any) -> list[ModelVersion]:
    return [
        ModelVersion(name, str(number), _read_tags(connection, name, number), description, created, source or "")
        for name, number, description, created, source in connection.execute(query, values).fetchall()
    ]


def _read_tags(connection: sqlite3.Connection, name: str, number: int) -> dict[str, str]:
    return dict(connection.execute(_VERSION_TAGS, (name, number)))
