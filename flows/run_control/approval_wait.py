"""A flow run that waits for a person's decision before it promotes."""

from __future__ import annotations

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
from pydantic import Field

from bloomery.data_contracts.recipe_sections.approval import Decision, Request, Terms, Waiter
from bloomery.data_contracts.records.records import Bento, Release
from bloomery.models.features.config import Gates
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import StageEnded, StageStarted, Waiting, emit
from bloomery.tasks.promote import approval_report
from bloomery.tasks.promote.stage import ask, promote
from bloomery.tasks.registry import approvals, champion

_POLL_S = 2


class Word(RunInput):
    """What Prefect's page asks a person for."""

    decision: Literal["approve", "refuse"]
    by: str = Field(min_length=1, max_length=200, description="your name, which the history keeps")
    why: str = Field(min_length=1, max_length=1000, description="the reason, which the history keeps")


def promote_when_approved(bento: Bento, gates: Gates, terms: Terms) -> Release:
    """The task `promote`; where the recipe asks for a person's word and has none yet, the flow run waits first.

    A run of a deployment gives its worker back while it waits, and is started again once it is decided. Another one
    stays, if a Prefect server stands or a person sits before it.

    Raises:
        ReleaseRefused: as `promote`; or nobody is there to decide now, and the version goes on waiting without the run.
    """
    if terms.approval is not None and promote.lookup(bento, gates, terms) is None:
        request = _approval(bento, gates, terms)
        if request is not None and request.decision is None:
            _wait(request, approval_report.figures(bento, request))
    return promote.as_task(bento, gates, terms)


@task(name="approval", task_run_name="approval", persist_result=False)
def _approval(bento: Bento, gates: Gates, terms: Terms) -> Request | None:
    begin = time.perf_counter()
    emit(StageStarted("approval"))
    try:
        request = ask(bento, gates, terms)
    except BaseException as failure:
        emit(StageEnded("approval", "failed", time.perf_counter() - begin, type(failure).__name__))
        raise
    if request is not None and request.decision is None:
        approval_report.present(bento, request)
    return request


def _wait(request: Request, figures: str) -> None:
    """Afterwards the registry has the decision, or nobody has decided in time."""
    reference = f"{request.name}:{request.version}"
    form = Word.with_initial_data(description=figures)
    key = f"approval-{request.name}-{request.version}"  # letters, digits and dashes only
    left_s = max(int((request.until - datetime.now(UTC)).total_seconds()), 1)
    is_deployed = deployment.id is not None
    if not is_deployed and settings().prefect_api_url is None and not sys.stdin.isatty():
        raise approvals.not_decided(request)
    waiter = None if is_deployed else _this_process()
    known = {"flow_run": flow_run.id, "api": os.environ.get("PREFECT_API_URL"), "waiter": waiter}
    approvals.keep(request.model_copy(update=known))
    emit(
        Waiting(
            "approval",
            f"{request.name} version {request.version} waits for approval until {request.until:%Y-%m-%d %H:%M}Z:\n"
            f"{figures}\n\n  bloomery approve {reference} --why …\n  bloomery approve {reference} --refuse --why …\n",
        )
    )
    try:
        if is_deployed:
            word: Any = suspend_flow_run(wait_for_input=form, timeout=left_s, key=key)
        else:
            word = pause_flow_run(wait_for_input=form, timeout=left_s, poll_interval=_POLL_S, key=key)
    except FlowPauseTimeout:
        approvals.settle_lapsed(request.name)
        return
    decision = Decision(decision=word.decision, by=word.by, why=word.why, at=datetime.now(UTC))
    with champion.changing(request.name):
        approvals.decide(request, decision)
    emit(StageEnded("approval", "asked", 0.0, f"{decision.decision} by {decision.by}"))


def _this_process() -> Waiter:
    return Waiter(host=socket.gethostname(), pid=os.getpid(), started=psutil.Process().create_time())
