"""What an endpoint does beside answering with its own bento, as its environment says.

| variable, after `BLOOMERY_SERVE_` | |
| --- | --- |
| `POINTER` | a file that names the version which answers, and is followed |
| `CANARY`, `CANARY_SHARE` | a bento's artifacts, and the share of the requests that it answers |
| `SHADOW` | a bento's artifacts, whose answers to all requests are logged |
| `LOG` | the folder in which predictions are logged |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.data_contracts.serving.champion_pointer import read_pointer
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.deployments.endpoint.inference.pointer_follower import Follower, load
from bloomery.deployments.endpoint.inference.shadow import Shadow
from bloomery.deployments.endpoint.telemetry.outcome_log import Outcomes
from bloomery.deployments.endpoint.telemetry.prediction_log import Bounds, PredictionLog

PREFIX = "BLOOMERY_SERVE_"


class Wishes(NamedTuple):
    """None stands for a thing that is not wanted."""

    pointer: Path | None = None
    canary: Path | None = None
    canary_share: float = 0.0
    shadow: Path | None = None
    log: Path | None = None


class Versions(NamedTuple):
    """Which answers, which answers a share of the requests, and whose answers are logged alone."""

    champion: Version
    canary: Version | None
    shadow: Version | None


def read_wishes(environment: Mapping[str, str] = os.environ) -> Wishes:
    """Raises SettingInvalid where a share is none, or a wish lacks what it needs."""
    stated = {name: environment.get(f"{PREFIX}{name.upper()}", "") for name in Wishes._fields}
    places = {name: Path(text) if text else None for name, text in stated.items() if name != "canary_share"}
    share = _share(stated["canary_share"])
    if (places["canary"] is None) != (share == 0):
        raise _invalid(f"{PREFIX}CANARY", "and its CANARY_SHARE are stated together or not at all", stated["canary"])
    if places["shadow"] is not None and places["log"] is None:
        raise _invalid(f"{PREFIX}SHADOW", "needs LOG beside it, where its answers are kept", stated["shadow"])
    return Wishes(canary_share=share, **places)


def read_versions(artifacts: Path, wishes: Wishes) -> Versions:
    """The version that is pointed to or else the one in `artifacts`, and those that are wished for beside it.

    Raises:
        OutputCorrupt: a version cannot answer as it was measured.
        SettingInvalid: the shadow reads columns that the version does not ask for.
    """
    champion = Version(artifacts) if wishes.pointer is None else load(read_pointer(wishes.pointer))
    canary = None if wishes.canary is None else Version(wishes.canary)
    shadow = None if wishes.shadow is None else Version(wishes.shadow)
    if shadow is not None:
        _require_columns(shadow, champion)
    return Versions(champion, canary, shadow)


def open_endpoint(application: Application, artifacts: Path, wishes: Wishes) -> Callable[[], None]:
    """Afterwards `application` answers, with the version that is pointed to or else the one in `artifacts`.

    Returns:
        A function that ends what was begun, after the last request.

    Raises as `read_versions` does.
    """
    measures, endings = application.measures, []
    versions = read_versions(artifacts, wishes)
    if wishes.log is not None:
        log = PredictionLog(wishes.log, Bounds(), measures.lost_by_log)
        if versions.shadow is not None:
            shadow = Shadow(versions.shadow, log, measures.lost_by_shadow)
            shadow.start()
            application.on_answered.append(shadow)
            endings.append(shadow.end)
        log.start()
        application.on_answered.append(log)
        endings.append(log.end)
        outcomes = Outcomes(wishes.log)
        outcomes.start()
        application.on_asked.append(outcomes)
        endings.append(outcomes.end)
    if versions.canary is not None:
        application.try_out(versions.canary, wishes.canary_share)
    application.use(versions.champion)
    if wishes.pointer is not None:
        follower = Follower(wishes.pointer, versions.champion, application.use, measures.refused)
        follower.start()
        endings.insert(0, follower.end)

    def end() -> None:
        for ending in endings:
            ending()

    return end


def _require_columns(shadow: Version, champion: Version) -> None:
    missing = set(shadow.check.schema.names) - set(champion.check.schema.names)
    if missing:
        raise _invalid(
            f"{PREFIX}SHADOW",
            f"reads columns that a request to {champion.tag} does not have: {', '.join(sorted(missing))}",
            shadow.tag,
        )


def _share(text: str) -> float:
    try:
        share = float(text or 0)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise _invalid(f"{PREFIX}CANARY_SHARE", "is a share from 0 to 1", text)
    return share


def _invalid(name: str, rule: str, found: str) -> SettingInvalid:
    return SettingInvalid(
        f"{name} is {found!r}",
        required=f"{name} {rule}",
        where="the environment of the endpoint",
        remedy="mend the variable, or let `bloomery serve` set it",
    )
