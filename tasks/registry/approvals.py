"""Approval requests, each stored as a tag of its version in the registry until it is closed.

The tag is authoritative: a waiting run may be killed, and everyone who uses the registry sees which versions wait.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.recipe_sections.approval import Approval, ApprovalRequest, Decision
from bloomery.tasks.registry.champion import champion_lock, record_refusal
from bloomery.tasks.registry.model_registry import bento_of, find_version, list_versions, require_versions
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion

_TAG = "approval"
WAITS = "waits for approval"


def find_request(version: ModelVersion) -> ApprovalRequest | None:
    """The open or decided request of this version, if there is one that is not closed."""
    text = version.tags.get(_TAG)
    is_own = bento_of(version) is not None  # another tool may use a tag of this name
    return ApprovalRequest.model_validate_json(text) if text is not None and is_own else None


def request_approval(version: ModelVersion, approval: Approval, champion: ModelVersion | None) -> ApprovalRequest:
    """The request of this version: the existing one, or a new one, which is saved.

    Call it inside `champion_lock`.
    """
    existing = find_request(version)
    if existing is not None:
        return existing
    now = datetime.now(UTC).replace(microsecond=0)
    replaces = None if champion is None else int(champion.version)
    request = ApprovalRequest(
        name=version.name,
        version=int(version.version),
        replaces=replaces,
        requested_at=now,
        expires_at=now + approval.timeout,
    )
    save_request(request)
    _set_release_tag(request, f"{WAITS} until {request.expires_at:%Y-%m-%d %H:%M}Z; then it is refused")
    return request


def save_request(request: ApprovalRequest) -> None:
    """Saves the request in the registry."""
    mlflow_runs.client().set_model_version_tag(request.name, str(request.version), _TAG, request.model_dump_json())


def record_decision(request: ApprovalRequest, decision: Decision) -> ApprovalRequest:
    """Saves the decision; a refusal is recorded in the history, too. An earlier decision stays.

    Call it inside `champion_lock`.
    """
    version = find_version(f"{request.name}:{request.version}")
    current = find_request(version) or request
    if current.decision is not None or current.has_expired:
        return apply_refusal(version, current)
    decided = current.model_copy(update={"decision": decision})
    save_request(decided)
    return apply_refusal(version, decided)


def apply_refusal(version: ModelVersion, request: ApprovalRequest) -> ApprovalRequest:
    """Tags a refused version, and records in the history who refused it. Returns the request."""
    refusal = request.refusal_reason
    if refusal is not None and not _is_marked_refused(version, refusal):
        by, reason = (request.decision.by, request.decision.reason) if request.decision else ("nobody", refusal)
        record_refusal(version, request.replaces, reason, by)
        _set_release_tag(request, _refusal_text(refusal))
    return request


def refuse_expired(name: str) -> None:
    """Refuses all versions of `name` whose request has expired without a decision."""
    for version in list_versions(name):
        request = find_request(version)
        if request is None or not request.has_expired or _is_marked_refused(version, request.refusal_reason):
            continue  # reading alone needs no lock
        with champion_lock(name):
            apply_refusal(version, request)


def find_version_after_expiry(reference: str) -> ModelVersion:
    """The version, after refusing all versions of its name whose request has expired.

    Raises:
        DataMissing: there is no such version.
    """
    version = find_version(reference)
    refuse_expired(version.name)
    return find_version(f"{version.name}:{version.version}")


def require_not_refused(version: ModelVersion) -> ApprovalRequest | None:
    """The request of this version, if any.

    Raises:
        ReleaseRefused: a person has refused the version, or its request has expired.
    """
    request = find_request(version)
    if request is None or request.refusal_reason is None:
        return request
    apply_refusal(version, request)
    reference = f"{version.name}:{version.version}"
    raise ReleaseRefused(
        f"{version.name} version {version.version} was refused: {request.refusal_reason}",
        required="a version that a person has approved in time",
        where="the version's tag `approval` in the registry",
        remedy=f"train another one, or override the refusal: bloomery promote {reference} --despite-refusal --reason …",
    )


def approval_pending(request: ApprovalRequest) -> ReleaseRefused:
    """The error of a version that passed its gates and has not been approved yet."""
    return ReleaseRefused(
        f"{request.name} version {request.version} passed its gates and waits for approval",
        required=f"a person's decision by {request.expires_at:%Y-%m-%d %H:%M}Z, after which it is refused",
        where="the recipe's `approval`",
        remedy=f"bloomery approve {request.name}:{request.version} --reason …",
    )


def find_pending(reference: str) -> ApprovalRequest:
    """The one request that waits for `NAME` or `NAME:VERSION`.

    Raises:
        DataMissing: no request waits, or several do.
    """
    name, _, number = reference.partition(":")
    require_versions(name)
    refuse_expired(name)
    requests = [request for request in map(find_request, list_versions(name)) if request and _is_open(request)]
    matches = [request for request in requests if not number or str(request.version) == number]
    if len(matches) == 1:
        return matches[0]
    listed = ", ".join(f"{request.name}:{request.version}" for request in requests)
    if matches:
        problem = f"{len(matches)} versions of {reference} wait for approval"
    else:
        problem = f"no version of {reference} waits for approval"
    raise DataMissing(
        problem,
        required=f"one of {listed}" if listed else "a version that passed its gates and waits",
        where="the versions' tags in the registry",
        remedy=f"name the version: bloomery approve {requests[0].name}:{requests[0].version} --reason …"
        if requests
        else f"bloomery history {name} shows the decisions; bloomery promote promotes another version",
    )


def close_request(version: ModelVersion) -> None:
    """Closes the request, so that a later promotion of the version needs a new approval."""
    text = version.tags.get(_TAG)
    if text is not None:
        mlflow_runs.client().set_model_version_tag(version.name, version.version, f"{_TAG}.given", text)
        mlflow_runs.client().delete_model_version_tag(version.name, version.version, _TAG)


def _is_open(request: ApprovalRequest) -> bool:
    """Whether a decision can still be made, or was made and not yet applied."""
    return request.refusal_reason is None


def _refusal_text(refusal: str | None) -> str:
    return f"refused: {refusal}"[:4000]


def _is_marked_refused(version: ModelVersion, refusal: str | None) -> bool:
    return bool(version.tags.get("release") == _refusal_text(refusal))


def _set_release_tag(request: ApprovalRequest, text: str) -> None:
    mlflow_runs.client().set_model_version_tag(request.name, str(request.version), "release", text)
