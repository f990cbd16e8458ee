"""Starts the endpoint with the options in its environment.

| variable, after `BLOOMERY_SERVE_` | |
| --- | --- |
| `POINTER` | the champion pointer to follow |
| `CANARY`, `CANARY_SHARE` | a bento's artifacts, and the share of the requests it serves |
| `SHADOW` | a bento's artifacts, whose predictions for all requests are logged |
| `LOG` | the folder of the prediction log |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.data_contracts.serving.champion_pointer import read_pointer
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.inference.pointer_follower import PointerFollower, load_version
from bloomery.deployments.endpoint.inference.shadow import Shadow
from bloomery.deployments.endpoint.telemetry.outcome_log import OutcomeLog
from bloomery.deployments.endpoint.telemetry.prediction_log import LogLimits, PredictionLog

PREFIX = "BLOOMERY_SERVE_"


class ServingOptions(NamedTuple):
    """The options of the endpoint. None turns an option off."""

    pointer: Path | None = None
    canary: Path | None = None
    canary_share: float = 0.0
    shadow: Path | None = None
    log: Path | None = None


class LoadedVersions(NamedTuple):
    """The version that serves, one that serves a share of the requests, and one whose predictions are only logged."""

    champion: LoadedVersion
    canary: LoadedVersion | None
    shadow: LoadedVersion | None


def read_serving_options(environment: Mapping[str, str] = os.environ) -> ServingOptions:
    """Reads the options. Raises SettingInvalid if the share is not valid, or an option requires another one."""
    values = {name: environment.get(f"{PREFIX}{name.upper()}", "") for name in ServingOptions._fields}
    paths = {name: Path(text) if text else None for name, text in values.items() if name != "canary_share"}
    share = _parse_share(values["canary_share"])
    if (paths["canary"] is None) != (share == 0):
        raise _invalid(f"{PREFIX}CANARY", "and CANARY_SHARE must be set together", values["canary"])
    if paths["shadow"] is not None and paths["log"] is None:
        raise _invalid(f"{PREFIX}SHADOW", "needs LOG, where its predictions are logged", values["shadow"])
    return ServingOptions(canary_share=share, **paths)


def load_versions(artifacts: Path, options: ServingOptions) -> LoadedVersions:
    """Loads the champion (from the pointer, or else from `artifacts`), the canary and the shadow.

    Raises:
        OutputCorrupt: a version fails its self-test or its files have changed.
        SettingInvalid: the shadow reads columns that the champion does not read.
    """
    champion = LoadedVersion(artifacts) if options.pointer is None else load_version(read_pointer(options.pointer))
    canary = None if options.canary is None else LoadedVersion(options.canary)
    shadow = None if options.shadow is None else LoadedVersion(options.shadow)
    if shadow is not None:
        _require_columns(shadow, champion)
    return LoadedVersions(champion, canary, shadow)


def start_endpoint(application: Application, artifacts: Path, options: ServingOptions) -> Callable[[], None]:
    """Loads the versions and starts logging, so that `application` serves.

    Returns:
        A function that stops all started threads. Call it after the last request.

    Raises as `load_versions` does.
    """
    metrics = application.metrics
    shutdown_steps: list[Callable[[], None]] = []
    versions = load_versions(artifacts, options)
    if options.log is not None:
        log = PredictionLog(options.log, LogLimits(), metrics.count_dropped_by_log)
        if versions.shadow is not None:
            shadow = Shadow(versions.shadow, log, metrics.count_dropped_by_shadow)
            shadow.start()
            application.batch_listeners.append(shadow)
            shutdown_steps.append(shadow.close)
        log.start()
        application.batch_listeners.append(log)
        shutdown_steps.append(log.close)
        outcomes = OutcomeLog(options.log)
        outcomes.start()
        application.request_listeners.append(outcomes)
        shutdown_steps.append(outcomes.close)
    if versions.canary is not None:
        application.use_canary(versions.canary, options.canary_share)
    application.use_version(versions.champion)
    if options.pointer is not None:
        follower = PointerFollower(
            options.pointer, versions.champion, application.use_version, metrics.count_rejected_version
        )
        follower.start()
        shutdown_steps.insert(0, follower.stop)

    def shut_down() -> None:
        for step in shutdown_steps:
            step()

    return shut_down


def _require_columns(shadow: LoadedVersion, champion: LoadedVersion) -> None:
    missing = set(shadow.row_check.schema.names) - set(champion.row_check.schema.names)
    if missing:
        raise _invalid(
            f"{PREFIX}SHADOW",
            f"must read only columns of {champion.tag}; it also reads {', '.join(sorted(missing))}",
            shadow.tag,
        )


def _parse_share(text: str) -> float:
    try:
        share = float(text or 0)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise _invalid(f"{PREFIX}CANARY_SHARE", "must be a share from 0 to 1", text)
    return share


def _invalid(name: str, rule: str, value: str) -> SettingInvalid:
    return SettingInvalid(
        f"{name} is {value!r}",
        required=f"{name} {rule}",
        where="the environment of the endpoint",
        remedy="correct the variable, or let `bloomery serve` set it",
    )
