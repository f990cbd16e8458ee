"""Makes a flow run wait for a person's approval before it promotes a version."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from datetime import UTC, datetime
from typing import Any, Literal

import psutil
from prefect import task
from prefect.exceptions import FlowPauseTimeout
from prefect.flow_runs import pause_flow_run, suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment, flow_run
from prefect.utilities.annotations import opaque, quote
from pydantic import Field

from bloomery.data_contracts.recipe_sections.approval import ApprovalRequest, Decision, PromotionTerms, WaitingProcess
from bloomery.data_contracts.records.records import Bento, Release
from bloomery.models.evaluation.gates import Gates
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import StageEnded, StageStarted, Waiting, emit
from bloomery.tasks.promote import approval_report
from bloomery.tasks.promote.stage import promote, submit_for_approval
from bloomery.tasks.registry import approvals, champion

_POLL_S = 2


class ApprovalForm(RunInput):
    """The form on the page of the paused flow run in Prefect's web interface."""

    decision: Literal["approve", "refuse"]
    by: str = Field(min_length=1, max_length=200, description="your name, kept in the history")
    reason: str = Field(min_length=1, max_length=1000, description="the reason, kept in the history")


def promote_when_approved(bento: Bento, gates: Gates, terms: PromotionTerms) -> Release:
    """Runs the task `promote`. If the recipe requires an approval that is missing, the flow run waits for it first.

    The run of a deployment is suspended, which frees its worker, and starts again after the decision. Any other run
    pauses, if it uses a permanent Prefect server or runs in a terminal.

    Raises:
        ReleaseRefused: as `promote`; or this run cannot wait for a decision, and the version waits without it.
    """
    if terms.approval is not None and promote.lookup(bento, gates, terms) is None:
        inputs: Any = (opaque(bento), quote(gates), quote(terms))  # see `Stage.as_task`
        request = _request_approval(*inputs)
        if request is not None and request.decision is None:
            _wait_for_decision(request, approval_report.format_comparison(bento, request))
    release = promote.as_task(bento, gates, terms)
    # The record of a release that is found has an equal bento, which may have been chosen among other candidates.
    return release.model_copy(update={"bento": bento})


@task(name="approval", task_run_name="approval", persist_result=False)
def _request_approval(bento: Bento, gates: Gates, terms: PromotionTerms) -> ApprovalRequest | None:
    start_time = time.perf_counter()
    emit(StageStarted("approval"))
    try:
        request = submit_for_approval(bento, gates, terms)
    except BaseException as failure:
        emit(StageEnded("approval", "failed", time.perf_counter() - start_time, type(failure).__name__))
        raise
    if request is not None and request.decision is None:
        approval_report.publish_approval_request(bento, request)
    return request


def _wait_for_decision(request: ApprovalRequest, figures: str) -> None:
    """Waits until the registry has a decision, or the request has expired."""
    reference = f"{request.name}:{request.version}"
    form = ApprovalForm.with_initial_data(description=figures)
    key = f"approval-{request.name}-{request.version}"  # letters, digits and dashes only
    # Rounded up, since a pause that ends before the request expires leaves the version undecided.
    remaining_s = max(math.ceil((request.expires_at - datetime.now(UTC)).total_seconds()), 1)
    is_deployed = deployment.id is not None
    if not is_deployed and settings().prefect_api_url is None and not sys.stdin.isatty():
        raise approvals.approval_pending(request)
    process = None if is_deployed else _this_process()
    details = {"flow_run": flow_run.id, "prefect_api": os.environ.get("PREFECT_API_URL"), "waiting_process": process}
    approvals.save_request(request.model_copy(update=details))
    emit(
        Waiting(
            "approval",
            f"{request.name} version {request.version} waits for approval until {request.expires_at:%Y-%m-%d %H:%M}Z:\n"
            f"{figures}\n\n  bloomery approve {reference} --reason …\n"
            f"  bloomery approve {reference} --refuse --reason …\n",
        )
    )
    try:
        if is_deployed:
            reply: Any = suspend_flow_run(wait_for_input=form, timeout=remaining_s, key=key)
        else:
            reply = pause_flow_run(wait_for_input=form, timeout=remaining_s, poll_interval=_POLL_S, key=key)
    except FlowPauseTimeout:
        approvals.refuse_expired(request.name)
        return
    decision = Decision(decision=reply.decision, by=reply.by, reason=reply.reason, at=datetime.now(UTC))
    with champion.champion_lock(request.name):
        approvals.record_decision(request, decision)
    emit(StageEnded("approval", "decided", 0.0, f"{decision.decision} by {decision.by}"))


def _this_process() -> WaitingProcess:
    return WaitingProcess(host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time())
