"""promote: a registered version becomes champion once its bento has answered held-out rows as measured."""

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
from bloomery.tasks.registry import approvals, model_registry, period_aliases
from bloomery.tasks.registry import champion as promotions


def _is_in_place(record: Release) -> bool:
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


@stage(is_whole=_is_in_place, present=release_report.publish_release)
def promote(out: Output, bento: Bento, gates: Gates, terms: PromotionTerms) -> Release:
    """Afterwards the alias `champion` names the version of this bento.

    If the champion is of newer data it stays, and an alias of the period's own names the version.

    Raises:
        ReleaseRefused: a gate is missed, also on labelled rows of late, the served bento answers otherwise than was
            measured, or a person has refused it or not decided yet, where the recipe asks for that. The version is
            registered and tagged as refused, or as waiting, and the former champion stands.
    """
    name = bento.tag.split(":")[0]
    with promotions.champion_lock(name):
        examined = check_release(bento, gates, terms)
        if examined.newer is not None and terms.period is not None:
            alias = terms.period
            period_aliases.mark_older(examined.version, terms.period, examined.newer)
        else:
            alias = model_registry.CHAMPION
            _make_champion(bento, examined, terms)
    version, former = examined.version, examined.former
    is_replaced = alias == model_registry.CHAMPION and former is not None and not examined.is_champion
    return Release(
        name=name,
        version=int(version.version),
        alias=alias,
        num_smoke_test_rows=examined.num_asked,
        example=json.dumps(examined.example),
        replaced_version=int(former.version) if is_replaced and former is not None else None,
        bento=bento,
        digest=digest_of_document([name, bento.digest]),
    )


def submit_for_approval(bento: Bento, gates: Gates, terms: PromotionTerms) -> ApprovalRequest | None:
    """Afterwards the version waits for a person's decision, if its promotion would change the champion.

    Returns the request, which may be decided already; None if there is nothing to decide.

    Raises:
        ReleaseRefused: as `promote`.
    """
    if terms.approval is None:
        return None
    with promotions.champion_lock(bento.tag.split(":")[0]):
        examined = check_release(bento, gates, terms)
        if examined.is_champion or examined.newer is not None:
            return None
        standing = approvals.require_not_refused(examined.version)
        return standing or approvals.request_approval(examined.version, terms.approval, examined.former)


def _make_champion(bento: Bento, examined: CheckedRelease, terms: PromotionTerms) -> None:
    version = examined.version
    run = _run_in_words(bento)
    if terms.approval is None or examined.is_champion:
        promotions.make_champion(version, "run", f"passed its gates; {examined.of_late}", by=run)
    else:
        request = approvals.require_not_refused(version) or approvals.request_approval(
            version, terms.approval, examined.former
        )
        if request.decision is None:
            raise approvals.approval_pending(request)
        promotions.make_champion(version, "approve", request.decision.reason, by=f"{request.decision.by}, in {run}")
    approvals.close_request(version)
    period_aliases.set_period_alias(version)


def _run_in_words(bento: Bento) -> str:
    from prefect.runtime import flow_run

    return f"run {flow_run.name} ({flow_run.id})" if flow_run.id else f"run {bento.choice.candidate.run_id}"
