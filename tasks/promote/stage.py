"""Stage `promote`: makes a registered version champion after it has passed its release checks."""

from __future__ import annotations

import json

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.recipe_sections.approval import ApprovalRequest, PromotionTerms
from bloomery.data_contracts.records.records import Bento, Release
from bloomery.models.evaluation.gates import Gates
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.promote import release_report
from bloomery.tasks.promote.release_checks import CheckedRelease, check_release
from bloomery.tasks.registry import approvals, champion, model_registry, period_aliases


def _is_promoted(record: Release) -> bool:
    current = model_registry.find_by_alias(record.name, record.alias)
    return (
        current is not None
        and int(current.version) == record.version
        and current.tags.get(model_registry.BENTO) == record.bento.tag
        and (
            record.alias == model_registry.CHAMPION
            or period_aliases.newer_period(model_registry.find_champion(record.name), record.alias) is not None
        )
    )


@stage(is_complete=_is_promoted, publish=release_report.publish_release)
def promote(out: Output, bento: Bento, gates: Gates, terms: PromotionTerms) -> Release:
    """Sets the alias `champion` to the version of this bento.

    If the champion was trained on a newer period it stays, and the version gets an alias of its own period.

    Raises:
        ReleaseRefused: a gate is missed on the test split or on recent data, a served prediction differs from the
            measured one, or the recipe requires an approval that is refused or pending. The version is registered and
            tagged as refused or waiting, and the champion stays.
    """
    name = bento.tag.split(":")[0]
    with champion.champion_lock(name):
        release = check_release(bento, gates, terms)
        if release.newer_period is not None and terms.period is not None:
            alias = terms.period
            period_aliases.mark_older(release.version, terms.period, release.newer_period)
        else:
            alias = model_registry.CHAMPION
            _make_champion(bento, release, terms)
    version, former = release.version, release.champion
    is_replaced = alias == model_registry.CHAMPION and former is not None and not release.is_champion
    return Release(
        name=name,
        version=int(version.version),
        alias=alias,
        num_smoke_test_rows=release.num_smoke_test_rows,
        example=json.dumps(release.example),
        replaced_version=int(former.version) if is_replaced and former is not None else None,
        bento=bento,
        digest=digest_of_document([name, bento.digest]),
    )


def submit_for_approval(bento: Bento, gates: Gates, terms: PromotionTerms) -> ApprovalRequest | None:
    """Requests approval of the version, if its promotion would change the champion.

    Returns:
        The request, which may be decided already; None if no approval is needed.

    Raises:
        ReleaseRefused: as in `promote`.
    """
    if terms.approval is None:
        return None
    with champion.champion_lock(bento.tag.split(":")[0]):
        release = check_release(bento, gates, terms)
        if release.is_champion or release.newer_period is not None:
            return None
        request = approvals.require_not_refused(release.version)
        return request or approvals.request_approval(release.version, terms.approval, release.champion)


def _make_champion(bento: Bento, release: CheckedRelease, terms: PromotionTerms) -> None:
    version = release.version
    run = _describe_run(bento)
    if terms.approval is None or release.is_champion:
        champion.make_champion(version, "run", f"passed its gates; {release.recent_data_result}", by=run)
    else:
        request = approvals.require_not_refused(version) or approvals.request_approval(
            version, terms.approval, release.champion
        )
        if request.decision is None:
            raise approvals.approval_pending(request)
        champion.make_champion(version, "approve", request.decision.reason, by=f"{request.decision.by}, in {run}")
    approvals.close_request(version)
    period_aliases.set_period_alias(version)


def _describe_run(bento: Bento) -> str:
    from prefect.runtime import flow_run

    return f"run {flow_run.name} ({flow_run.id})" if flow_run.id else f"run {bento.choice.candidate.run_id}"
