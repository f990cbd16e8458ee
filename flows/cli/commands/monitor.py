"""`bloomery monitor`: a look at what a model was asked and has answered."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.flows.cli.exit_codes import at_work

if TYPE_CHECKING:
    from bloomery.data_contracts.monitoring import Findings

_BROKEN = 3  # as where a contract is broken

Moment = Annotated[str, typer.Option(metavar="TIME", help="As 2026-11-25T12:00 (UTC), or so long ago: 6h, 7d.")]


def monitor(
    recipe: Annotated[str, typer.Argument(help="A name in deployments/recipes/, or the path of a recipe file.")],
    since: Moment = "",
    until: Moment = "",
    fail_on_drift: Annotated[bool, typer.Option(help="End with exit code 3 where something has drifted.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Compare what the champion was asked and has answered with the rows that it learnt from."""
    with at_work(as_json, "monitor") as out:
        now = datetime.now(UTC)
        began, end = (_moment(text, option, now) for text, option in ((since, "--since"), (until, "--until")))
        if began is not None and began >= (end or now):
            raise _invalid("--since", since, "a time before --until")
        found = _look(recipe, began, end)
        if as_json:
            out.file.write(found.model_dump_json(exclude={"drifts": {"__all__": {"usual", "found"}}}) + "\n")
        else:
            from bloomery.tasks.monitoring.publishing import in_words

            for line in in_words(found):
                out.print(line, highlight=False, markup=False, soft_wrap=True)
        out.file.flush()
    if fail_on_drift and found.has_drifted:
        raise SystemExit(_BROKEN)


def _look(recipe: str, since: datetime | None, until: datetime | None) -> Findings:
    """One run of the flow, with a Prefect server for its time where there is none."""
    from bloomery.flows.execution.ephemeral_server import prefect_api
    from bloomery.flows.recipe.recipe import read_recipe

    read_recipe(recipe)  # what is wrong with it is told before a server starts
    with prefect_api() as wait_until_ready:
        from bloomery.flows.monitor import monitor as look

        wait_until_ready()
        return look(recipe, since, until)


def _moment(text: str, option: str, now: datetime) -> datetime | None:
    from bloomery.data_contracts.monitoring import span

    if not text:
        return None
    if re.fullmatch(r"[1-9][0-9]{0,4}[mhd]", text):
        return now - span(text)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise _invalid(option, text, "a time such as 2026-11-25T12:00, or a span such as 6h") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _invalid(option: str, found: str, required: str) -> SettingInvalid:
    return SettingInvalid(
        f"{option} is {found!r}", required=required, where="the command line", remedy="mend the option"
    )
