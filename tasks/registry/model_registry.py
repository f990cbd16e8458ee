"""The MLflow model registry: the versions of a name, and which of them is champion."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from bloomery.data_contracts.documents.similar_names import suggest_names
from bloomery.data_contracts.errors import DataMissing, DataUnfit
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking import local_database
from bloomery.tasks.tracking.local_database import DatabaseUnreadable
from bloomery.tasks.tracking.mlflow_runs import client
from bloomery.tasks.tracking.model_versions import ModelVersion

CHAMPION = "champion"
BENTO = "bento"
CANDIDATE_RUN = "candidate.run"
FREED = "freed"  # tag: the day on which `bloomery gc` removed the version's bento
_BENTO_TAG = re.compile(r"[^:/]+:[^:/]+")


def list_versions(name: str) -> list[ModelVersion]:
    """All versions of `name`, newest first; none if there is no such name."""
    try:
        return local_database.list_versions(name)
    except DatabaseUnreadable:
        versions = map(ModelVersion.from_mlflow, client().search_model_versions(f"name = '{name}'"))
        return sorted(versions, key=lambda version: int(version.version), reverse=True)


def list_names() -> list[str]:
    try:
        return local_database.list_names()
    except DatabaseUnreadable:
        return sorted(model.name for model in client().search_registered_models())


def read_model_tags(name: str) -> dict[str, str]:
    """The tags of a registered model."""
    try:
        return local_database.read_model_tags(name)
    except DatabaseUnreadable:
        return dict(client().get_registered_model(name).tags)


def require_versions(name: str) -> list[ModelVersion]:
    """All versions of `name`, newest first. Raises DataMissing where there is none."""
    versions = list_versions(name)
    if not versions:
        names = list_names()
        found = f"the registry has no {name!r}{suggest_names(name, names)}"
        raise DataMissing(
            f"the model {name!r} has no version" if name in names else found,
            required=f"one of {', '.join(names)}" if names else "a registered version; there is none yet",
            where="the MLflow model registry",
            remedy="correct the name, or make a version with `bloomery run RECIPE`",
        )
    return versions


def find_champion(name: str) -> ModelVersion | None:
    """The version that serves, if any."""
    return find_by_alias(name, CHAMPION)


def find_by_alias(name: str, alias: str) -> ModelVersion | None:
    """The version that the alias names, if any."""
    try:
        return local_database.find_by_alias(name, alias)
    except DatabaseUnreadable:
        return _find_with_client(lambda: client().get_model_version_by_alias(name, alias))


def _find_by_number(name: str, number: str) -> ModelVersion | None:
    try:
        return local_database.find_version(name, number)
    except DatabaseUnreadable:
        return _find_with_client(lambda: client().get_model_version(name, number))


def _find_with_client(find: Callable[[], Any]) -> ModelVersion | None:
    """The version that `find`, a call of MLflow's client, returns; None if there is no such version."""
    from mlflow.exceptions import MlflowException

    try:
        return ModelVersion.from_mlflow(find())
    except MlflowException:
        return None


def bento_of(version: ModelVersion | None) -> str | None:
    """The tag of a version's bento; None for no version, and for one that another tool has registered."""
    tag = None if version is None else version.tags.get(BENTO)
    return tag if tag is not None and _BENTO_TAG.fullmatch(tag) else None


def require_bento_tag(version: ModelVersion) -> str:
    """The tag of a version's bento. Raises DataUnfit for a version that another tool has registered."""
    tag = bento_of(version)
    if tag is not None:
        return tag
    own_versions = [other for other in list_versions(version.name) if bento_of(other) is not None]
    examples = ", ".join(f"{version.name}:{other.version}" for other in own_versions[:5])
    raise DataUnfit(
        f"{version.name} version {version.version} was not registered by Bloomery: it has no bento",
        required="a version that `bloomery run` has registered" + (f": {examples}" if examples else ""),
        where=f"the MLflow model registry at {settings().tracking_uri}",
        remedy=f"name one of these versions; MLflow itself loads this one, as models:/{version.name}/{version.version}"
        if examples
        else f"load it with mlflow.pyfunc.load_model('models:/{version.name}/{version.version}'), or run a recipe",
    )


def require_not_freed(version: ModelVersion, *, has_bento: bool) -> None:
    """Raises DataMissing if `bloomery gc` has removed the version's bento and it was not packaged again."""
    if has_bento or FREED not in version.tags:
        return
    raise DataMissing(
        f"{version.name} version {version.version} was freed by `bloomery gc` on {version.tags[FREED]}",
        required="a version whose bento is kept",
        where=f"the version's tag `{FREED}` in the registry",
        remedy="run its recipe on its data again, which packages the same bento under the same version; or choose a "
        "version that `bloomery gc` lists as kept",
    )


def find_version(reference: str) -> ModelVersion:
    """The version that `NAME`, `NAME@ALIAS` or `NAME:VERSION` refers to; `NAME` alone means its champion.

    MLflow's `models:/NAME@ALIAS` and `models:/NAME/VERSION` mean the same.

    Raises:
        DataMissing: there is none.
    """
    name, _, alias = without_scheme(reference).partition("@")
    name, _, number = name.partition(":")
    version = _find_by_number(name, number) if number else find_by_alias(name, alias or CHAMPION)
    if version is not None:
        return version
    names = list_names()
    found = f"the registry has no {reference}{'' if name in names else suggest_names(name, names)}"
    remedy = (
        "use `NAME@champion`, or `NAME:3` for version 3; `bloomery show NAME` lists the versions, and "
        "`bloomery run RECIPE` makes one"
    )
    if name in names and not number:
        found = f"{name} has no champion" if alias in ("", CHAMPION) else f"{name} has no alias {alias!r}"
        if alias.isdecimal() and _find_by_number(name, alias) is not None:
            found += f"; did you mean {name}:{alias}?"
        if list_versions(name):
            remedy = f"name a version by its number; `bloomery promote {name}:NUMBER` makes one the champion"
    raise DataMissing(
        found,
        required=_describe_alternatives(name, names),
        where=f"the MLflow model registry at {settings().tracking_uri}",
        remedy=remedy,
    )


def without_scheme(reference: str) -> str:
    """`NAME@ALIAS` or `NAME:VERSION` for MLflow's `models:/NAME@ALIAS` or `models:/NAME/VERSION`; else unchanged."""
    if not reference.startswith("models:/"):
        return reference
    name, _, number = reference.removeprefix("models:/").strip("/").partition("/")
    return f"{name}:{number}" if number else name


def _describe_alternatives(name: str, names: list[str]) -> str:
    """Existing references to versions of the name, or `names`, the existing ones, if it does not exist."""
    if name not in names:
        return f"one of the names {', '.join(names)}" if names else "a registered version; there is none yet"
    numbers = [f"{name}:{version.version}" for version in list_versions(name)[:5]]
    aliases = [f"{name}@{CHAMPION}"] if find_champion(name) else []
    return f"one of {', '.join([*aliases, *numbers])}" if numbers else f"a version of {name}; it has none"


def register_version(name: str, source: str, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
    """The version of `name` that has this bento and source: the existing one with its tags updated, else a new one.

    `source` is the address of a logged model, `models:/ID`; if that of the bento was deleted, it is another one. An
    existing version may be of another run, so all tags are set again.
    """
    from mlflow.exceptions import MlflowException

    try:
        client().create_registered_model(name)
    except MlflowException:
        client().get_registered_model(name)  # it exists already; otherwise this raises the actual error
    versions = {(version.tags.get(BENTO), version.source): version for version in reversed(list_versions(name))}
    version = versions.get((tags[BENTO], source))
    if version is None:
        # A server needs the model id beside the address that contains it; MLflow in this process does not.
        model_id = source.removeprefix("models:/")
        created = client().create_model_version(
            name, source=source, run_id=run_id, tags=dict(tags), description=description, model_id=model_id
        )
        return ModelVersion.from_mlflow(created)
    for key, value in tags.items():
        client().set_model_version_tag(name, version.version, key, value)
    if FREED in version.tags:
        client().delete_model_version_tag(name, version.version, FREED)  # its bento was packaged again
    return version
