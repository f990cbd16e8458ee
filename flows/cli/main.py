"""The command line. Commands import engines only when they need them, so `bloomery --help` is instant.

Exit codes: 0 success, 2 invalid usage or recipe, 3 contract violated, 4 no candidate passed or the release was refused,
1 any other error.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.flows.cli.commands import contracts, keys
from bloomery.flows.cli.commands.backfill import backfill
from bloomery.flows.cli.commands.gc import gc
from bloomery.flows.cli.commands.init import init
from bloomery.flows.cli.commands.monitor import monitor
from bloomery.flows.cli.commands.releases import approve, compare, history, promote, rollback
from bloomery.flows.cli.commands.reproduce import reproduce
from bloomery.flows.cli.commands.serve import container, serve
from bloomery.flows.cli.commands.up import down, status, up
from bloomery.flows.cli.exit_codes import command_session, reporting_errors
from bloomery.flows.cli.process_start import prepare_process
from bloomery.flows.cli.stop_signals import raise_on_signals, stop_document

if TYPE_CHECKING:
    from rich.table import Table
    from rich.tree import Tree

app = typer.Typer(
    name="bloomery",
    help="Train, compress and serve models from rows and a data contract.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[str, typer.Argument(help="A recipe, by name or path.")]
Period = Annotated[str | None, typer.Option(help="Period of a dated recipe, such as 2019-02; defaults to the latest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def run(recipe: RecipeName, period: Period = None, as_json: AsJson = False) -> None:
    """Run a recipe from raw rows to a served champion."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with reporting_errors(as_json):
        log = require_state_folder().logs / f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    from bloomery.flows.cli.display import ProgressDisplay, engine_output_to_log, print_release

    start_time = time.perf_counter()
    with engine_output_to_log(log) as (out, err), reporting_errors(as_json, out, err, log):
        from bloomery.flows.execution.local_run import run_recipe

        if as_json:
            release = run_recipe(recipe, period)
            out.file.write(release.model_dump_json(by_alias=True, exclude_defaults=True) + "\n")
        else:
            with ProgressDisplay(out):
                release = run_recipe(recipe, period)
            print_release(out, release, time.perf_counter() - start_time, recipe, period)


def check(recipe: RecipeName, period: Period = None, as_json: AsJson = False) -> None:
    """Check recipe, contract and data; show what a run would compute."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with reporting_errors(as_json):
        from bloomery.flows.recipe.recipe import read_recipe

        spec = read_recipe(recipe, period)
        log = require_state_folder().logs / f"check-{os.getpid()}.log"
    from bloomery.flows.cli.display import engine_output_to_log

    with engine_output_to_log(log) as (out, err), reporting_errors(as_json, out, err, log):
        from rich.markup import escape

        from bloomery.flows.execution.dry_run import dry_run
        from bloomery.flows.run_control.machine_requirements import check_machine_requirements

        check_machine_requirements(spec)
        stages = dry_run(spec).stages
        if as_json:
            document = {
                "recipe": spec.name,
                "digest": spec.digest,
                "contract": f"{spec.contract.name} {spec.contract.version}",
                "unchecked": [str(item) for item in spec.contract.unchecked],
                "stages": [{"stage": stage.stage, "digest": stage.digest} for stage in stages],
            }
            out.file.write(json.dumps(document) + "\n")
            return
        out.print(f"[bold]{escape(' '.join(spec.title))}[/] r{spec.digest[:8]}: {escape(spec.description)}")
        contract = f"{spec.contract.name} {spec.contract.version}"
        out.print(f"contract {contract}, {len(spec.contract.rules())} rules", markup=False)
        for item in spec.contract.unchecked:
            out.print(f"         not checked: {item}", style="dim", markup=False)
        out.print(f"data     {spec.data.description}", markup=False)
        for stage in stages:
            state = "[yellow]compute[/]" if stage.digest is None else f"[cyan]found[/]    {stage.digest[:16]}"
            out.print(f"  {stage.stage:<9} {state}")


def show(
    name: Annotated[str, typer.Argument(help="NAME, NAME:3, NAME@champion, a recipe's path, or a bento.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also show lineage, metrics, promotions and tags of a version.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a model's versions, or what one version is and how good."""
    with command_session(as_json, "show") as out:
        from bloomery.flows.cli.commands import show as views
        from bloomery.flows.recipe.recipe_files import resolve_model
        from bloomery.tasks.registry.bento_provenance import is_bento

        draw: Callable[[dict[str, Any]], Tree | Table]
        if is_bento(name):
            document, draw = views.bento_document(name), views.bento_tree
        elif "@" in (reference := resolve_model(name)) or ":" in reference:
            document = views.version_document(reference)
            draw = views.version_tree if everything else views.version_summary
        else:
            document, draw = views.versions_document(reference), views.versions_tree
        if as_json:
            out.file.write(json.dumps(document) + "\n")
            return
        out.print(draw(document))
        if draw is views.version_summary:
            out.print(
                f"\nlineage, metrics and tags: bloomery show {shlex.quote(name)} --all", style="dim", markup=False
            )


def doctor(as_json: AsJson = False) -> None:
    """Check versions, Java, ports, disk, GPU and state folder."""
    with reporting_errors(as_json):
        from bloomery.flows.cli.commands.doctor import run_checks

        results = run_checks()
        if as_json:
            typer.echo(json.dumps([result._asdict() for result in results]))
        else:
            from rich.markup import escape

            from bloomery.flows.cli.display import LineConsole

            console = LineConsole()
            for result in results:
                symbol = "[green]✓[/]" if result.passed else "[red]✗[/]"
                console.print(f"{symbol} {result.name:<14} {escape(result.detail)}")
    if not all(result.passed for result in results):
        raise SystemExit(1)


COMMANDS: tuple[Callable[..., None], ...] = (
    *(run, check, init, show, serve, container, up, status, down, doctor, gc),
    *(promote, approve, rollback, history, compare, backfill, monitor, reproduce),
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(contracts.app, name="contract")
app.add_typer(keys.app, name="key")


def main() -> None:
    """Runs the command line and ends the process.

    It skips Python's own shutdown, which would take a second or more after the engines were loaded: servers have ended
    and files are closed by then.
    """
    raise_on_signals()
    try:
        with reporting_errors("--json" in sys.argv):
            prepare_process()
        app()
        code: object = 0
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt as stop:  # before or after the work of the command
        code = stop_document(stop)["exit_code"]
    with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
