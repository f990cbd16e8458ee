"""`bloomery backfill`: runs a dated recipe once for each period, oldest first."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bloomery.data_contracts.errors import DataMissing, SettingInvalid
from bloomery.data_contracts.recipe_sections.periods import PERIOD_EXAMPLES, period_range
from bloomery.flows.cli.exit_codes import command_session

if TYPE_CHECKING:
    from bloomery.flows.recipe.recipe import Recipe

_POLL_S = 0.1
_MAX_LISTED = 12  # periods without data that the error lists


class PeriodResult(NamedTuple):
    """The result of a period. `outcome` is "done" (released by an earlier run), "released", "failed" or "not run"."""

    period: str
    outcome: str
    version: int | None = None
    alias: str | None = None
    score: str | None = None
    seconds: float = 0.0
    error: dict[str, Any] | None = None


class _PeriodRun(NamedTuple):
    """A run that has been started. `start_time` is monotonic; `out` is the file of its standard output."""

    period: str
    start_time: float
    tether: subprocess.Popen[bytes]
    out: Path


def backfill(
    recipe: Annotated[str, typer.Argument(help="A dated recipe, by name or path.")],
    first: Annotated[str, typer.Option("--from", help="The oldest period, such as 2019-01.")],
    last: Annotated[str, typer.Option("--to", help="The newest period.")],
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Periods to run at the same time.")] = 1,
    keep_going: Annotated[bool, typer.Option(help="Continue with other periods after a failure.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Run a dated recipe for each period, oldest first; skip complete ones."""
    with command_session(as_json, "backfill") as out:
        recipes = _recipes(recipe, first, last)
        _require_data(recipes)
        report: Callable[[str], None] = (lambda line: None) if as_json else out.print
        results = _with_aliases(recipes[0].name, _run_all(recipe, recipes, concurrency, keep_going, report))
        if as_json:
            document = {"recipe": recipes[0].name, "periods": [result._asdict() for result in results]}
            out.file.write(json.dumps(document) + "\n")
        else:
            out.print(_table(recipes[0].name, results))
    errors = [result.error for result in results if result.error is not None]
    if errors:
        raise SystemExit(errors[0]["exit_code"])


def _recipes(reference: str, first: str, last: str) -> list[Recipe]:
    """Reads the recipe for each period, oldest first.

    Raises:
        SettingInvalid: the recipe is not dated, or has no such periods.
    """
    from bloomery.flows.recipe.recipe import read_recipe

    period_length = read_recipe(reference).period_length
    if period_length is None:
        raise SettingInvalid(
            f"the recipe {reference} has no periods",
            required="a recipe with `period_length`, and {period:…} in its data source",
            where=reference,
            remedy="add both to the recipe",
        )
    try:
        periods = list(period_range(first, last, period_length))
    except ValueError as failure:
        raise SettingInvalid(
            str(failure),
            required=f"two periods such as {PERIOD_EXAMPLES[period_length]}, the older one first",
            where="--from and --to",
            remedy="correct the periods",
        ) from failure
    return [read_recipe(reference, period) for period in periods]


def _require_data(recipes: Sequence[Recipe]) -> None:
    """Raises DataMissing, which lists every period without data."""
    from bloomery.tasks.ingest.stage import locate_source

    missing: list[tuple[str, DataMissing]] = []
    for recipe in recipes:
        try:
            locate_source(recipe.data, recipe.contract.personal_columns)
        except DataMissing as failure:
            missing.append((recipe.period or "", failure))
    if missing:
        lines = "".join(f"\n  {period}: {failure.found}" for period, failure in missing[:_MAX_LISTED])
        more = f"\n  and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
        raise DataMissing(
            f"{len(missing)} of {len(recipes)} periods have no data:{lines}{more}",
            required="the data of every period; nothing was run",
            where=missing[0][1].where,
            remedy=f"provide it, or leave these periods out: {missing[0][1].remedy}",
        )


def _run_all(
    reference: str, recipes: Sequence[Recipe], concurrency: int, keep_going: bool, report: Callable[[str], None]
) -> Iterator[PeriodResult]:
    """Yields the result of each period, oldest first. After a failure no further period starts, unless `keep_going`."""
    results: dict[str, PeriodResult] = {}
    running: list[_PeriodRun] = []
    waiting = list(recipes)
    has_failed = False
    try:
        while running or (waiting and not (has_failed and not keep_going)):
            while waiting and len(running) < concurrency and not (has_failed and not keep_going):
                recipe = waiting.pop(0)
                earlier_result = _find_done(recipe)
                if earlier_result is not None:
                    results[earlier_result.period] = earlier_result
                    report(f"= {earlier_result.period}  done by an earlier run, version {earlier_result.version}")
                else:
                    running.append(_start(reference, recipe.period or ""))
            for run in [run for run in running if run.tether.poll() is not None]:
                running.remove(run)
                results[run.period] = result = _read_result(run)
                has_failed |= result.error is not None
                report(_line(result))
            time.sleep(_POLL_S if running else 0)
    finally:
        _stop(running)
    for recipe in recipes:
        yield results.get(recipe.period or "") or PeriodResult(recipe.period or "", "not run")


def _with_aliases(name: str, results: Iterator[PeriodResult]) -> list[PeriodResult]:
    """Returns the results with their final aliases: at most one champion; all others have their period's alias."""
    from bloomery.tasks.registry import model_registry

    result_list = list(results)
    champion = model_registry.find_champion(name)
    serving = None if champion is None else int(champion.version)
    return [
        result
        if result.version is None
        else result._replace(alias=model_registry.CHAMPION if result.version == serving else result.period)
        for result in result_list
    ]


def _find_done(recipe: Recipe) -> PeriodResult | None:
    """Returns the period's result of an earlier run, if every output is stored and current."""
    from bloomery.flows.execution.dry_run import dry_run
    from bloomery.tasks.registry import period_aliases

    outputs = {stage.stage: stage.digest for stage in dry_run(recipe).stages}
    bento = outputs["package"]
    if bento is None or recipe.period is None:
        return None
    version = period_aliases.find_period_version(recipe.name, recipe.period, bento)
    if version is None:
        return None
    return PeriodResult(recipe.period, "done", int(version.version), score=version.tags.get("score"))


def _start(reference: str, period: str) -> _PeriodRun:
    """Starts the run in a process that ends when this one does."""
    from bloomery.tasks.infrastructure import tethered_process
    from bloomery.tasks.infrastructure.python_processes import module_command
    from bloomery.tasks.infrastructure.settings import settings

    out = settings().logs / f"backfill-{os.getpid()}-{period}.json"
    command = module_command("bloomery.flows.cli", "run", reference, "--period", period, "--json")
    with out.open("wb") as stream:
        return _PeriodRun(period, time.monotonic(), tethered_process.start_tethered(command, stream), out)


def _read_result(run: _PeriodRun) -> PeriodResult:
    """Returns the result that a completed run has printed."""
    from bloomery.data_contracts.records.records import Release
    from bloomery.data_contracts.records.score_format import format_score_value

    run.tether.wait()
    seconds = time.monotonic() - run.start_time
    lines = run.out.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    try:
        document = json.loads(lines[-1])
    except ValueError:
        problem = f"the run ended with exit code {run.tether.returncode}; its output: {run.out}"
        document = {"error": "RunEnded", "found": problem}
    if "error" in document:
        return PeriodResult(run.period, "failed", seconds=seconds, error={"exit_code": 1, **document})
    release = Release.model_validate(document)
    choice = release.bento.choice
    score = format_score_value(choice.candidates.trained.score, choice.candidate.score.value)
    run.out.unlink()
    return PeriodResult(run.period, "released", release.version, score=score, seconds=seconds)


def _stop(running: Sequence[_PeriodRun]) -> None:
    from bloomery.tasks.infrastructure import tethered_process

    for run in running:
        tethered_process.stop_tethered(run.tether)


def _line(result: PeriodResult) -> str:
    if result.error is not None:
        return f"[red]✗[/] {result.period}  {result.error['error']}: {result.error['found']}"
    return f"[green]✓[/] {result.period}  version {result.version}, {result.score}, {result.seconds:.0f} s"


def _table(name: str, results: Sequence[PeriodResult]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(name), title_justify="left")
    for heading in ("period", "outcome", "version", "alias", "score", "time"):
        table.add_column(heading)
    for result in results:
        outcome = result.outcome if result.error is None else f"{result.outcome}: {result.error['error']}"
        duration = f"{result.seconds:.0f} s" if result.seconds else ""
        version = str(result.version or "")
        cells = (result.period, outcome, version, result.alias or "", result.score or "", duration)
        table.add_row(*map(escape, cells))
    return table
