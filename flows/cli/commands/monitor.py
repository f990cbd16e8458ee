"""`bloomery monitor`: compares a champion's requests and predictions with its reference profile."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bloomery.data_contracts.errors import ContractBroken, SettingInvalid
from bloomery.flows.cli.exit_codes import command_session

if TYPE_CHECKING:
    from bloomery.data_contracts.monitoring import MonitoringReport

Time = Annotated[str, typer.Option(metavar="TIME", help="As 2026-11-25T12:00 (UTC), or as an age: 6h, 7d.")]


def monitor(
    recipe: Annotated[str, typer.Argument(help="A recipe, by name or path.")],
    since: Time = "",
    until: Time = "",
    fail_on_drift: Annotated[bool, typer.Option(help="End with exit code 3 on drift.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Compare a champion's requests and predictions with its training data."""
    with command_session(as_json, "monitor") as out:
        now = datetime.now(UTC)
        start, end = (_parse_time(text, option, now) for text, option in ((since, "--since"), (until, "--until")))
        if start is not None and start >= (end or now):
            raise _invalid("--since", since, "a time before --until")
        report = _run_flow(recipe, start, end)
        if as_json:
            out.file.write(report.model_dump_json(exclude={"drifts": {"__all__": {"reference", "observed"}}}) + "\n")
        else:
            from bloomery.tasks.monitoring.publishing import describe_report

            for line in describe_report(report):
                out.print(line, highlight=False, markup=False, soft_wrap=True)
        out.file.flush()
    if fail_on_drift and report.has_drifted:
        raise SystemExit(ContractBroken.exit_code)


def _run_flow(recipe: str, since: datetime | None, until: datetime | None) -> MonitoringReport:
    """Runs the flow `monitor`, with its own Prefect server if there is none."""
    from bloomery.flows.execution.ephemeral_server import ephemeral_prefect_api
    from bloomery.flows.recipe.handover import hand_over
    from bloomery.flows.recipe.recipe import read_recipe
    from bloomery.tasks.registry.model_registry import CHAMPION, find_version, require_bento_tag

    spec = read_recipe(recipe)  # an invalid recipe and a missing champion are reported before a server starts
    require_bento_tag(find_version(f"{spec.name}@{CHAMPION}"))
    with ephemeral_prefect_api() as start_server:
        from bloomery.tasks.infrastructure.neutral_imports import import_prefect

        import_prefect()
        from bloomery.flows.monitor import monitor as monitoring_flow

        start_server()()
        hand_over(recipe, None, spec)
        return monitoring_flow(recipe, since, until)


def _parse_time(text: str, option: str, now: datetime) -> datetime | None:
    from bloomery.data_contracts.documents.durations import parse_duration

    if not text:
        return None
    with contextlib.suppress(ValueError):  # a time, parsed below
        return now - parse_duration(text)
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(option, text, "a time such as 2026-11-25T12:00, or an age such as 6h") from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _invalid(option: str, value: str, required: str) -> SettingInvalid:
    return SettingInvalid(
        f"{option} is {value!r}", required=required, where="the command line", remedy="correct the option"
    )
