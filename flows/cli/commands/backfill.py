"""`bloomery backfill`: a dated recipe, run once for each period, oldest first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bloomery.data_contracts.errors import DataMissing, SettingInvalid
from bloomery.data_contracts.recipe_sections.periods import EXAMPLES, between
from bloomery.flows.cli.exit_codes import at_work

if TYPE_CHECKING:
    from bloomery.flows.recipe.recipe import Recipe

_LOOK_S = 0.1
_NAMED = 12  # of the periods without data, so many are named


class Filled(NamedTuple):
    """What became of a period. `outcome` is "done" before, "released", "failed" or "not run"."""

    period: str
    outcome: str
    version: int | None = None
    alias: str | None = None
    score: str | None = None
    seconds: float = 0.0
    error: dict[str, Any] | None = None


class _Running(NamedTuple):
    period: str
    begin: float
    tether: subprocess.Popen[bytes]
    out: Path


def backfill(
    recipe: Annotated[str, typer.Argument(help="A dated recipe: a name in deployments/recipes/, or a path.")],
    first: Annotated[str, typer.Option("--from", help="The oldest period, such as 2019-01.")],
    last: Annotated[str, typer.Option("--to", help="The newest one.")],
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Periods that run at the same time.")] = 1,
    keep_going: Annotated[bool, typer.Option(help="Run the others, too, after one has failed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Run a dated recipe once for each period, oldest first. What is done is skipped, so it can be started again."""
    with at_work(as_json, "backfill") as out:
        recipes = _recipes(recipe, first, last)
        _require_data(recipes)
        told: Callable[[str], None] = (lambda line: None) if as_json else out.print
        filled = _with_aliases(recipes[0].name, _run_all(recipe, recipes, concurrency, keep_going, told))
        if as_json:
            document = {"recipe": recipes[0].name, "periods": [one._asdict() for one in filled]}
            out.file.write(json.dumps(document) + "\n")
        else:
            out.print(_table(recipes[0].name, filled))
    failed = [one.error for one in filled if one.error is not None]
    if failed:
        raise SystemExit(failed[0]["exit_code"])


def _recipes(reference: str, first: str, last: str) -> list[Recipe]:
    """The recipe for each period, oldest first.

    Raises:
        SettingInvalid: the recipe is for all times, or it knows no such periods.
    """
    from bloomery.flows.recipe.recipe import read_recipe

    every = read_recipe(reference).every
    if every is None:
        raise SettingInvalid(
            f"the recipe {reference} is for all times",
            required="a recipe with `every`, and {period:…} in its data",
            where=reference,
            remedy="let the recipe say where each period's data lies",
        )
    try:
        periods = list(between(first, last, every))
    except ValueError as failure:
        raise SettingInvalid(
            str(failure),
            required=f"two of the kind {EXAMPLES[every]}, the older one first",
            where="--from and --to",
            remedy="mend the periods",
        ) from failure
    return [read_recipe(reference, period) for period in periods]


def _require_data(recipes: Sequence[Recipe]) -> None:
    """Raises DataMissing, which names every period whose data is not there."""
    from bloomery.tasks.ingest.stage import locate

    lacking: list[tuple[str, DataMissing]] = []
    for recipe in recipes:
        try:
            locate(recipe.data, recipe.contract.personal_columns)
        except DataMissing as failure:
            lacking.append((recipe.period or "", failure))
    if lacking:
        shown = "".join(f"\n  {period}: {failure.found}" for period, failure in lacking[:_NAMED])
        more = f"\n  and {len(lacking) - _NAMED} more" if len(lacking) > _NAMED else ""
        raise DataMissing(
            f"{len(lacking)} of {len(recipes)} periods have no data:{shown}{more}",
            required="the data of every period; nothing was run",
            where=lacking[0][1].where,
            remedy=f"put it there, or leave these periods out: {lacking[0][1].remedy}",
        )


def _run_all(
    reference: str, recipes: Sequence[Recipe], concurrency: int, keep_going: bool, told: Callable[[str], None]
) -> Iterator[Filled]:
    """What became of each period, oldest first. After a failure no other begins, unless told to keep going."""
    ended: dict[str, Filled] = {}
    running: list[_Running] = []
    waiting = list(recipes)
    has_failed = False
    try:
        while running or (waiting and not (has_failed and not keep_going)):
            while waiting and len(running) < concurrency and not (has_failed and not keep_going):
                recipe = waiting.pop(0)
                done = _done(recipe)
                if done is not None:
                    ended[done.period] = done
                    told(f"= {done.period}  done before, version {done.version}")
                else:
                    running.append(_start(reference, recipe.period or ""))
            for one in [one for one in running if one.tether.poll() is not None]:
                running.remove(one)
                ended[one.period] = filled = _ending(one)
                has_failed |= filled.error is not None
                told(_line(filled))
            time.sleep(_LOOK_S if running else 0)
    finally:
        _stop(running)
    for recipe in recipes:
        yield ended.get(recipe.period or "") or Filled(recipe.period or "", "not run")


def _with_aliases(name: str, filled: Iterator[Filled]) -> list[Filled]:
    """The same, with the aliases as they are in the end: whoever was champion on the way has its period's alone."""
    from bloomery.tasks.registry import model_registry

    every = list(filled)
    champion = model_registry.champion(name)
    serving = None if champion is None else int(champion.version)
    return [
        one
        if one.version is None
        else one._replace(alias=model_registry.CHAMPION if one.version == serving else one.period)
        for one in every
    ]


def _done(recipe: Recipe) -> Filled | None:
    """What an earlier run made for the period, if all of it is there and nothing would be computed today."""
    from bloomery.flows.execution.dry_run import plan
    from bloomery.tasks.registry import period_aliases

    steps = {step.stage: step.found for step in plan(recipe).steps}
    bento = steps["package"]
    if bento is None or recipe.period is None:
        return None
    version = period_aliases.version_for(recipe.name, recipe.period, bento)
    if version is None:
        return None
    return Filled(recipe.period, "done", int(version.version), score=version.tags.get("score"))


def _start(reference: str, period: str) -> _Running:
    """A run of its own process, which ends when this one does."""
    from bloomery.tasks.infrastructure import tethered_process
    from bloomery.tasks.infrastructure.settings import settings

    out = settings().logs / f"backfill-{os.getpid()}-{period}.json"
    command = [sys.executable, "-m", "bloomery.flows.cli", "run", reference, "--period", period, "--json"]
    with out.open("wb") as stream:
        return _Running(period, time.monotonic(), tethered_process.start(command, stream), out)


def _ending(one: _Running) -> Filled:
    """What the run has said at its end."""
    from bloomery.data_contracts.records.records import Release
    from bloomery.data_contracts.records.score_format import figure_in_words

    one.tether.wait()
    seconds = time.monotonic() - one.begin
    lines = one.out.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        document = json.loads(lines[-1])
    except ValueError:
        document = {"error": "RunEnded", "found": f"the run ended with {one.tether.returncode}; its output: {one.out}"}
    if "error" in document:
        return Filled(one.period, "failed", seconds=seconds, error={"exit_code": 1, **document})
    release = Release.model_validate(document)
    chosen = release.bento.chosen
    score = figure_in_words(chosen.options.trained.dataset.task, chosen.candidate.score.value)
    one.out.unlink()
    return Filled(one.period, "released", release.version, score=score, seconds=seconds)


def _stop(running: Sequence[_Running]) -> None:
    from bloomery.tasks.infrastructure import tethered_process

    for one in running:
        tethered_process.stop(one.tether)


def _line(filled: Filled) -> str:
    if filled.error is not None:
        return f"[red]✗[/] {filled.period}  {filled.error['error']}: {filled.error['found']}"
    return f"[green]✓[/] {filled.period}  version {filled.version}, {filled.score}, {filled.seconds:.0f} s"


def _table(name: str, filled: Sequence[Filled]) -> Any:
    from rich.table import Table

    table = Table(title=name, title_justify="left")
    for heading in ("period", "outcome", "version", "alias", "score", "time"):
        table.add_column(heading)
    for one in filled:
        told = one.outcome if one.error is None else f"{one.outcome}: {one.error['error']}"
        time_s = f"{one.seconds:.0f} s" if one.seconds else ""
        table.add_row(one.period, told, str(one.version or ""), one.alias or "", one.score or "", time_s)
    return table
