"""The MLflow model registry: versions of a name, and which one of them is champion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bloomery.data_contracts.errors import DataMissing
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking.mlflow_runs import client

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
BENTO = "bento"
FREED = "freed"  # the day on which `bloomery gc` removed the version's bento


def versions(name: str) -> list[ModelVersion]:
    """All versions of `name`, newest first; none if there is no such name."""
    found = client().search_model_versions(f"name = '{name}'")
    return sorted(found, key=lambda version: int(version.version), reverse=True)


def names() -> list[str]:
    return sorted(model.name for model in client().search_registered_models())


def require_versions(name: str) -> list[ModelVersion]:
    """All versions of `name`, newest first. Raises DataMissing where there is none."""
    found = versions(name)
    if not found:
        known = names()
        raise DataMissing(
            f"the registry has no {name!r}",
            required=f"one of {', '.join(known)}" if known else "a registered version; there is none yet",
            where="the MLflow model registry",
            remedy="mend the name, or make a version with `bloomery run RECIPE`",
        )
    return found


def champion(name: str) -> ModelVersion | None:
    """The version that serves, if any."""
    return named(name, CHAMPION)


def named(name: str, alias: str) -> ModelVersion | None:
    """The version that the alias names, if any."""
    from mlflow.exceptions import MlflowException

    try:
        return client().get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def bento_of(version: ModelVersion | None) -> str | None:
    """The tag of a version's bento, if there is one."""
    return None if version is None else version.tags.get(BENTO)


def require_not_freed(version: ModelVersion, is_there: bool) -> None:
    """Raises DataMissing where `bloomery gc` has removed the version's bento. `is_there`: somebody made it again."""
    if is_there or FREED not in version.tags:
        return
    raise DataMissing(
        f"{version.name} version {version.version} was freed by `bloomery gc` on {version.tags[FREED]}",
        required="a version whose bento is kept",
        where=f"the version's tag `{FREED}` in the registry",
        remedy="run its recipe on its data again: its bento comes back under its version; or take one of those "
        "that `bloomery gc` lists as kept",
    )


def version_of(reference: str) -> ModelVersion:
    """The version that `NAME`, `NAME@ALIAS` or `NAME:VERSION` names; `NAME` alone means its champion.

    Raises:
        DataMissing: there is none.
    """
    from mlflow.exceptions import MlflowException

    name, _, alias = reference.partition("@")
    name, _, number = name.partition(":")
    try:
        if number:
            return client().get_model_version(name, number)
        return client().get_model_version_by_alias(name, alias or CHAMPION)
    except MlflowException as failure:
        raise DataMissing(
            f"the registry has no {reference}",
            required=_references(name),
            where=f"the MLflow model registry at {settings().tracking_uri}",
            remedy="say `NAME@champion`, or `NAME:3` for version 3; `bloomery show NAME` lists the versions, and "
            "`bloomery run RECIPE` makes one",
        ) from failure


def _references(name: str) -> str:
    """What there is instead, of that name or at all."""
    known = names()
    if name not in known:
        return f"one of the names {', '.join(known)}" if known else "a registered version; there is none yet"
    numbers = [f"{name}:{one.version}" for one in versions(name)[:5]]
    serving = [f"{name}@{CHAMPION}"] if champion(name) else []
    return f"one of {', '.join([*serving, *numbers])}" if numbers else f"a version of {name}; it has none"


def register(name: str, source: str, run_id: str, tags: Mapping[str, str], description: str) -> ModelVersion:
    """The version of `name` whose tag `bento` is the one given: found if there is one, else made.

    `source` is the address of a logged model, `models:/ID`.
    A found version gets the tags anew, for its run may be another than before.
    """
    from mlflow.exceptions import MlflowException

    try:
        client().create_registered_model(name)
    except MlflowException:
        client().get_registered_model(name)  # it was there already, or this says what is wrong
    found = next((one for one in versions(name) if one.tags.get(BENTO) == tags[BENTO]), None)
    if found is None:
        # A server demands the model's ID beside the address that holds it; MLflow in this process does not.
        model_id = source.removeprefix("models:/")
        return client().create_model_version(
            name, source=source, run_id=run_id, tags=dict(tags), description=description, model_id=model_id
        )
    for key, value in tags.items():
        client().set_model_version_tag(name, found.version, key, value)
    if FREED in found.tags:
        client().delete_model_version_tag(name, found.version, FREED)  # its bento was packaged again
    return found
