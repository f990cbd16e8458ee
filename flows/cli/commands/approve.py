"""`bloomery approve`: a person's word on a version that waits, given without a browser."""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.recipe_sections.approval import Decision, Request
from bloomery.flows.cli.exit_codes import at_work

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def approve(
    version: Annotated[str, typer.Argument(help="NAME, or NAME:VERSION where several wait.")],
    why: Annotated[str, typer.Option(help="The reason, which the history keeps.")],
    refuse: Annotated[bool, typer.Option("--refuse", help="Say no: the champion stays.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Let a version that waits for approval become champion, or refuse it. The run that waits goes on."""
    with at_work(as_json, "approve") as out:
        from bloomery.tasks.registry import approvals
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        request = approvals.waiting(version)
        by = f"{getpass.getuser()}@{socket.gethostname()}"
        word = "refuse" if refuse else "approve"
        said = Decision.model_validate({"decision": word, "by": by, "why": why, "at": datetime.now(UTC)})
        with promotions.changing(request.name):
            request = approvals.decide(request, said)
        if request.decision is None or request.decision.decision != word:
            raise _decided_otherwise(request)
        goes_on = _resume(request, said)
        if not refuse and not goes_on:
            _promote(request)
        decided = registry.version_of(f"{request.name}:{request.version}")
        if as_json:
            document = {
                "name": request.name,
                "version": request.version,
                **said.model_dump(mode="json"),
                "flow_run": request.flow_run if goes_on else None,
                "release": decided.tags.get("release"),
            }
            out.file.write(json.dumps(document) + "\n")
            return
        out.print(f"{request.name} version {request.version} is {'refused' if refuse else 'approved'} by {by}: {why}")
        if goes_on:
            out.print(f"the run {request.flow_run} goes on{'' if refuse else ' and promotes it'}")
        elif not refuse:
            out.print("no run waited for it any more, so it was promoted now: it is the champion")


def _decided_otherwise(request: Request) -> ReleaseRefused:
    decision = request.decision
    told = request.refusal if decision is None else f"{decision.by} decided to {decision.decision} it: {decision.why}"
    return ReleaseRefused(
        f"{request.name} version {request.version} is decided already: {told}",
        required="a version that still waits",
        where="the version's tag `approval` in the registry",
        remedy=f"bloomery history {request.name} shows what was decided",
    )


def _resume(request: Request, said: Decision) -> bool:
    """Whether a run waited for the decision, and goes on now."""
    if request.flow_run is None or request.api is None or _has_ended(request):
        return False
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from bloomery.tasks.infrastructure.settings import settings

    api = settings().prefect_api_url or request.api
    word = {"decision": said.decision, "by": said.by, "why": said.why}
    with (
        temporary_settings({PREFECT_API_URL: api}),
        contextlib.suppress(httpx.HTTPError, ObjectNotFound, RuntimeError),
        get_client(sync_client=True) as client,
    ):
        run = client.read_flow_run(UUID(request.flow_run))
        if run.state is not None and run.state.is_paused():
            return client.resume_flow_run(run.id, run_input=word).status.value == "ACCEPT"
    return False


def _has_ended(request: Request) -> bool:
    """Whether the process that waited is gone, as far as this machine knows."""
    from bloomery.tasks.infrastructure.tethered_process import lives

    if request.waiter is None or request.waiter.host != socket.gethostname():
        return False
    return not lives(request.waiter.pid, request.waiter.started)


def _promote(request: Request) -> ModelVersion:
    """Afterwards the approved version is champion, as the run would have made it.

    Raises:
        ReleaseRefused: the champion is another than the one that it was compared with, or its bento does not answer.
    """
    from bloomery.tasks.bentos.bento_server import require_bento
    from bloomery.tasks.bentos.rehearsal import rehearse
    from bloomery.tasks.registry import approvals, period_aliases
    from bloomery.tasks.registry import champion as promotions
    from bloomery.tasks.registry import model_registry as registry

    with promotions.changing(request.name):
        version = registry.version_of(f"{request.name}:{request.version}")
        champion = registry.champion(request.name)
        serving = None if champion is None else int(champion.version)
        if serving not in (request.replaces, request.version):
            raise ReleaseRefused(
                f"version {serving} is the champion by now, and {request.name} version {request.version} was compared "
                f"with {f'version {request.replaces}' if request.replaces else 'none'}",
                required="a version that passed its gates against today's champion",
                where="the registry's alias `champion`",
                remedy="run the recipe again: the approval is kept, and the gates compare with today's champion",
            )
        tag = version.tags[registry.BENTO]
        require_bento(tag)
        rehearse(tag)
        if request.decision is not None:
            promotions.make_champion(version, "approve", request.decision.why, by=request.decision.by)
        approvals.close(version)
        period_aliases.name(version)
    return version
