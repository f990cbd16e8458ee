"""`bloomery promote`, `approve`, `rollback`, `history` and `compare`: commands about the served version."""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.recipe_sections.approval import ApprovalRequest, Decision
from bloomery.data_contracts.serving.champion_pointer import FollowerStatus
from bloomery.flows.cli.exit_codes import command_session

if TYPE_CHECKING:
    from rich.table import Table

    from bloomery.tasks.registry.champion import Promotion
    from bloomery.tasks.tracking.model_versions import ModelVersion

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Reason = Annotated[str, typer.Option("--reason", help="The reason, kept in the history.")]
ModelName = Annotated[str, typer.Argument(help="The name of a model, or the path of its recipe.")]


def promote(
    version: Annotated[str, typer.Argument(help="NAME:VERSION, such as digits:3.")],
    reason: Reason = "",
    despite_refusal: Annotated[bool, typer.Option(help="Promote a version that a gate refused.")] = False,
    min_shadow_rows: Annotated[int, typer.Option(min=0, help="Required number of rows predicted as shadow.")] = 0,
    min_agreement: Annotated[
        float, typer.Option(min=0, max=1, help="Required share of equal predictions as shadow.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion; endpoints switch to it without downtime."""
    with command_session(as_json, "promote") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model
        from bloomery.tasks.bentos.bento_server import require_bento
        from bloomery.tasks.bentos.bento_store import bento_folder
        from bloomery.tasks.bentos.smoke_test import run_smoke_test
        from bloomery.tasks.monitoring import shadow_comparison
        from bloomery.tasks.registry import approvals
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        challenger = approvals.find_version_after_expiry(resolve_model(version))
        _require_not_refused(challenger, despite_refusal)
        tag = registry.require_bento_tag(challenger)
        registry.require_not_freed(challenger, has_bento=bento_folder(tag).is_dir())
        require_bento(tag)
        if min_shadow_rows:
            champion = registry.require_bento_tag(registry.find_version(f"{challenger.name}@{registry.CHAMPION}"))
            shadow_comparison.require_agreement(challenger.name, champion, tag, min_shadow_rows, min_agreement)
        with promotions.champion_lock(challenger.name):
            run_smoke_test(tag)
            promotion = promotions.make_champion(challenger, "promote", reason or "promoted manually")
            approvals.close_request(challenger)
        _report(out, as_json, challenger, promotion, promotions.wait_for_followers(challenger.name, tag))


def approve(
    version: Annotated[str, typer.Argument(help="NAME, or NAME:VERSION if several wait.")],
    reason: Annotated[str, typer.Option("--reason", help="The reason, kept in the history.")],
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse it; the champion stays.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Approve or refuse a version that waits for approval."""
    with command_session(as_json, "approve") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model
        from bloomery.tasks.registry import approvals
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        request = approvals.find_pending(resolve_model(version))
        by = f"{getpass.getuser()}@{socket.gethostname()}"
        verdict = "refuse" if refuse else "approve"
        decision = Decision.model_validate({"decision": verdict, "by": by, "reason": reason, "at": datetime.now(UTC)})
        with promotions.champion_lock(request.name):
            request = approvals.record_decision(request, decision)
        if request.decision is None or request.decision.decision != verdict:
            raise _already_decided(request)
        is_resumed = _resume_run(request, decision)
        if not refuse and not is_resumed:
            _promote_approved(request)
        decided = registry.find_version(f"{request.name}:{request.version}")
        if as_json:
            document = {
                "name": request.name,
                "version": request.version,
                **decision.model_dump(mode="json"),
                "flow_run": request.flow_run if is_resumed else None,
                "release": decided.tags.get("release"),
            }
            out.file.write(json.dumps(document) + "\n")
            return
        outcome = "refused" if refuse else "approved"
        out.print(f"{request.name} version {request.version} is {outcome} by {by}: {reason}", markup=False)
        if is_resumed:
            out.print(f"the run {request.flow_run} continues{'' if refuse else ' and promotes it'}")
        elif not refuse:
            out.print("no run waits for it, so this command promoted it: it is the champion")


def rollback(name: ModelName, reason: Reason = "", as_json: AsJson = False) -> None:
    """Make the previous champion the champion again; repeat to go further back."""
    with command_session(as_json, "rollback") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model_name
        from bloomery.tasks.bentos.bento_server import require_bento
        from bloomery.tasks.bentos.bento_store import bento_folder
        from bloomery.tasks.bentos.smoke_test import run_smoke_test
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        name = resolve_model_name(name)
        with promotions.champion_lock(name):
            champion, previous = promotions.champion_and_previous(name)
            tag = registry.require_bento_tag(previous)
            registry.require_not_freed(previous, has_bento=bento_folder(tag).is_dir())
            require_bento(tag)
            run_smoke_test(tag)
            promotion = promotions.roll_back(champion, previous, reason or "rolled back manually")
        _report(out, as_json, previous, promotion, promotions.wait_for_followers(name, tag))


def history(name: ModelName, as_json: AsJson = False) -> None:
    """Show promotions, rollbacks and refusals, with person, time and reason."""
    with command_session(as_json, "history") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model_name
        from bloomery.tasks.registry import approvals
        from bloomery.tasks.registry import champion as promotions
        from bloomery.tasks.registry import model_registry as registry

        name = resolve_model_name(name)
        registry.require_versions(name)
        approvals.refuse_expired(name)
        changes = promotions.promotion_history(name)
        if as_json:
            out.file.write(json.dumps([change.model_dump(mode="json") for change in changes]) + "\n")
            return
        if changes:
            out.print(history_table(name, changes))
        else:
            out.print(f"no version of {name} was promoted; bloomery show {name} lists them", markup=False)


def history_table(name: str, changes: Sequence[Promotion]) -> Table:
    """Returns a table of the changes, newest first. It has no links: their targets are relative to MLflow's page."""
    from rich.markup import escape
    from rich.table import Table

    from bloomery.flows.cli.commands.show import remove_link_targets

    table = Table(title=escape(name), title_justify="left")
    for heading in ("time", "action", "from", "to", "by", "reason", "metrics"):
        table.add_column(heading, overflow="fold")  # no name is cut off
    for change in reversed(changes):
        replaced = "" if change.replaced is None else str(change.replaced)
        row = (f"{change.at:%Y-%m-%d %H:%M:%S}Z", change.action, replaced, str(change.version))
        metrics = remove_link_targets(change.description.split("\n")[0])
        table.add_row(*row, escape(change.by), escape(change.reason), metrics)
    return table


def compare(
    name: ModelName,
    challenger: Annotated[str, typer.Option(help="NAME:VERSION; defaults to the latest shadow.")] = "",
    labels: Annotated[
        Path | None, typer.Option(help="Parquet with the columns `request`, `label` and optionally `row`.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare a shadow with the champion by logged predictions."""
    with command_session(as_json, "compare") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model, resolve_model_name
        from bloomery.tasks.monitoring import shadow_comparison
        from bloomery.tasks.registry import model_registry as registry

        name = resolve_model_name(name)
        champion = registry.require_bento_tag(registry.find_version(f"{name}@{registry.CHAMPION}"))
        challenger_tag = (
            registry.require_bento_tag(registry.find_version(resolve_model(challenger))) if challenger else None
        )
        result = shadow_comparison.compare_versions(name, champion, challenger_tag, labels)
        if as_json:
            out.file.write(result.model_dump_json() + "\n")
        else:
            for line in shadow_comparison.describe_comparison(result):
                out.print(line, markup=False)


def _require_not_refused(version: ModelVersion, despite_refusal: bool) -> None:
    from bloomery.tasks.registry import approvals

    verdict = version.tags.get("release", "")
    if verdict.startswith(approvals.WAITS):
        raise ReleaseRefused(
            f"{version.name} version {version.version} {verdict}",
            required="a person's decision on that request",
            where="the version's tag `approval` in the registry",
            remedy=f"bloomery approve {version.name}:{version.version} --reason …",
        )
    if verdict.startswith("refused") and not despite_refusal:
        raise ReleaseRefused(
            f"{version.name} version {version.version} was {verdict.splitlines()[0]}",
            required="a version that passed its gates, or --despite-refusal",
            where="the version's tag `release` in the registry",
            remedy="add --despite-refusal and --reason",
        )


def _already_decided(request: ApprovalRequest) -> ReleaseRefused:
    decision = request.decision
    outcome = request.refusal_reason if decision is None else f"{decision.decision} by {decision.by}: {decision.reason}"
    return ReleaseRefused(
        f"{request.name} version {request.version} is already decided: {outcome}",
        required="a version that waits for approval",
        where="the version's tag `approval` in the registry",
        remedy=f"bloomery history {request.name} shows the decision",
    )


def _resume_run(request: ApprovalRequest, decision: Decision) -> bool:
    """Passes the decision to the run that waits for it. Returns False if none waits."""
    if request.flow_run is None or request.prefect_api is None or _has_ended(request):
        return False
    import httpx

    from bloomery.tasks.infrastructure.neutral_imports import import_prefect, use_prefect_api
    from bloomery.tasks.infrastructure.settings import settings

    import_prefect()
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    api = settings().prefect_api_url or request.prefect_api
    form = {"decision": decision.decision, "by": decision.by, "reason": decision.reason}
    with (
        use_prefect_api(api),
        contextlib.suppress(httpx.HTTPError, ObjectNotFound, RuntimeError),
        get_client(sync_client=True) as client,
    ):
        run = client.read_flow_run(UUID(request.flow_run))
        if run.state is not None and run.state.is_paused():
            return client.resume_flow_run(run.id, run_input=form).status.value == "ACCEPT"
    return False


def _has_ended(request: ApprovalRequest) -> bool:
    """Whether the process that waited is gone, as far as this machine can tell."""
    from bloomery.tasks.infrastructure.tethered_process import is_running

    if request.waiting_process is None or request.waiting_process.host != socket.gethostname():
        return False
    return not is_running(request.waiting_process.pid, request.waiting_process.started)


def _promote_approved(request: ApprovalRequest) -> None:
    """Promotes an approved version as its run would have.

    Raises:
        ReleaseRefused: the champion is not the version it was compared with, or its bento fails the smoke test.
    """
    from bloomery.tasks.bentos.bento_server import require_bento
    from bloomery.tasks.bentos.smoke_test import run_smoke_test
    from bloomery.tasks.registry import approvals, period_aliases
    from bloomery.tasks.registry import champion as promotions
    from bloomery.tasks.registry import model_registry as registry

    with promotions.champion_lock(request.name):
        version = registry.find_version(f"{request.name}:{request.version}")
        champion = registry.find_champion(request.name)
        serving = None if champion is None else int(champion.version)
        if serving not in (request.replaces, request.version):
            compared = f"version {request.replaces}" if request.replaces else "no champion"
            raise ReleaseRefused(
                f"the champion is now version {serving}, but {request.name} version {request.version} was compared "
                f"with {compared}",
                required="a version that passed its gates against the current champion",
                where="the registry's alias `champion`",
                remedy="run the recipe again: the approval is kept, and the gates use the current champion",
            )
        tag = registry.require_bento_tag(version)
        require_bento(tag)
        run_smoke_test(tag)
        if request.decision is not None:
            promotions.make_champion(version, "approve", request.decision.reason, by=request.decision.by)
        approvals.close_request(version)
        period_aliases.set_period_alias(version)


def _report(
    out: Any, as_json: bool, version: ModelVersion, promotion: Promotion | None, statuses: list[FollowerStatus]
) -> None:
    """Prints the promotion. Raises ReleaseRefused if an endpoint did not switch to the version."""
    tag = version.tags["bento"]
    lagging = [status for status in statuses if status.bento != tag]
    if not as_json:
        for line in _describe(version, promotion, statuses):
            out.print(line, markup=False)
    elif not lagging:
        document = {
            "name": version.name,
            "version": int(version.version),
            "bento": tag,
            "replaced": None if promotion is None else promotion.replaced,
            "endpoints": [status.model_dump() for status in statuses],
        }
        out.file.write(json.dumps(document) + "\n")
    if lagging:
        problems = "; ".join(
            f"process {status.pid} still serves {status.bento}: {status.refusal_reason or 'no reason yet'}"
            for status in lagging
        )
        raise ReleaseRefused(
            f"{version.name} version {version.version} is the champion, but {problems}",
            required="endpoints that switch to the champion",
            where=f"the processes that serve {version.name}",
            remedy=f"restart them if the version needs newer code; or bloomery rollback {version.name}",
        )


def _describe(version: ModelVersion, promotion: Promotion | None, statuses: list[FollowerStatus]) -> Iterator[str]:
    name, tag = f"{version.name} version {version.version}", version.tags["bento"]
    if promotion is None:
        yield f"{name} is already the champion"
    else:
        replaced = "" if promotion.replaced is None else f", replacing version {promotion.replaced}"
        yield f"{name} (bento {tag}) is the champion{replaced}"
    for status in statuses:
        if status.bento == tag:
            yield f"  the endpoint of process {status.pid} serves it"
