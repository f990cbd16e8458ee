"""Requests for a person's word on a version, kept as a tag of the version in the registry until they are used up.

The tag is what counts: a run that waits can be killed, and whoever sees the registry sees what waits.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.recipe_sections.approval import Approval, Decision, Request
from bloomery.tasks.registry import champion
from bloomery.tasks.registry import model_registry as registry
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_TAG = "approval"
WAITS = "waits for approval"


def of(version: ModelVersion) -> Request | None:
    """The request for this version, if there is one that is not used up."""
    text = version.tags.get(_TAG)
    return None if text is None else Request.model_validate_json(text)


def ask(version: ModelVersion, approval: Approval, former: ModelVersion | None) -> Request:
    """The request for this version: the one that stands, or a new one, which the registry has afterwards.

    Call it inside `promotions.changing`.
    """
    standing = of(version)
    if standing is not None:
        return standing
    now = datetime.now(UTC).replace(microsecond=0)
    replaces = None if former is None else int(former.version)
    request = Request(
        name=version.name, version=int(version.version), replaces=replaces, asked=now, until=now + approval.timeout
    )
    keep(request)
    _mark(request, f"{WAITS} until {request.until:%Y-%m-%d %H:%M}Z; then it is refused")
    return request


def keep(request: Request) -> None:
    """Afterwards the registry has the request as it is here."""
    mlflow_runs.client().set_model_version_tag(request.name, str(request.version), _TAG, request.model_dump_json())


def decide(request: Request, decision: Decision) -> Request:
    """Afterwards the registry has the decision, and of a refusal the history, too. What was decided before stays.

    Call it inside `promotions.changing`.
    """
    version = registry.version_of(f"{request.name}:{request.version}")
    standing = of(version) or request
    if standing.decision is not None or standing.has_lapsed:
        return settle(version, standing)
    decided = standing.model_copy(update={"decision": decision})
    keep(decided)
    return settle(version, decided)


def settle(version: ModelVersion, request: Request) -> Request:
    """Afterwards a refused version is marked so, and the history has who refused it."""
    refusal = request.refusal
    if refusal is not None and not _is_marked(version, refusal):
        by, why = (request.decision.by, request.decision.why) if request.decision else ("nobody", refusal)
        champion.remember_refusal(version, request.replaces, why, by)
        _mark(request, _verdict(refusal))
    return request


def settle_lapsed(name: str) -> None:
    """Afterwards all versions of `name` for which nobody decided in time are marked as refused."""
    for version in registry.versions(name):
        request = of(version)
        if request is None or not request.has_lapsed or _is_marked(version, request.refusal):
            continue  # whoever only looks takes no lock
        with champion.changing(name):
            settle(version, request)


def settled(reference: str) -> ModelVersion:
    """The version, after all of its name for which nobody decided in time were marked as refused.

    Raises:
        DataMissing: there is no such version.
    """
    found = registry.version_of(reference)
    settle_lapsed(found.name)
    return registry.version_of(f"{found.name}:{found.version}")


def require_not_refused(version: ModelVersion) -> Request | None:
    """The request for this version, which nobody has refused.

    Raises:
        ReleaseRefused: a person has, or nobody decided in time.
    """
    request = of(version)
    if request is None or request.refusal is None:
        return request
    settle(version, request)
    reference = f"{version.name}:{version.version}"
    raise ReleaseRefused(
        f"{version.name} version {version.version} was refused: {request.refusal}",
        required="a version that a person has approved in time",
        where="the version's tag `approval` in the registry",
        remedy=f"train another one, or override the refusal: bloomery promote {reference} --despite-refusal --reason …",
    )


def not_decided(request: Request) -> ReleaseRefused:
    """The error of a version that passed its gates, but nobody has approved it yet."""
    return ReleaseRefused(
        f"{request.name} version {request.version} passed its gates and waits for approval",
        required=f"a person's decision by {request.until:%Y-%m-%d %H:%M}Z, after which it is refused",
        where="the recipe's `approval`",
        remedy=f"bloomery approve {request.name}:{request.version} --reason …",
    )


def waiting(reference: str) -> Request:
    """The one request that waits for `NAME` or `NAME:VERSION`.

    Raises:
        DataMissing: nothing waits, or more than one does.
    """
    name, _, number = reference.partition(":")
    registry.require_versions(name)
    settle_lapsed(name)
    found = [request for request in map(of, registry.versions(name)) if request and _is_open(request)]
    wanted = [request for request in found if not number or str(request.version) == number]
    if len(wanted) == 1:
        return wanted[0]
    told = ", ".join(f"{one.name}:{one.version}" for one in found)
    raise DataMissing(
        f"{len(wanted) or 'no'} version{'s' if wanted else ''} of {reference} wait{'' if wanted else 's'} for approval",
        required=f"one of {told}" if told else "a version that passed its gates and waits",
        where="the versions' tags in the registry",
        remedy=f"say which: bloomery approve {found[0].name}:{found[0].version} --reason …"
        if found
        else f"bloomery history {name} shows what was decided; bloomery promote promotes another version",
    )


def close(version: ModelVersion) -> None:
    """Afterwards the request is used up: should the version have to be promoted again, a person is asked again."""
    text = version.tags.get(_TAG)
    if text is not None:
        mlflow_runs.client().set_model_version_tag(version.name, version.version, f"{_TAG}.given", text)
        mlflow_runs.client().delete_model_version_tag(version.name, version.version, _TAG)


def _is_open(request: Request) -> bool:
    """Whether a decision can still be given, or was given and not yet acted upon."""
    return request.refusal is None


def _verdict(refusal: str | None) -> str:
    return f"refused: {refusal}"[:4000]


def _is_marked(version: ModelVersion, refusal: str | None) -> bool:
    return bool(version.tags.get("release") == _verdict(refusal))


def _mark(request: Request, verdict: str) -> None:
    mlflow_runs.client().set_model_version_tag(request.name, str(request.version), "release", verdict)
