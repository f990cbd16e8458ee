"""The command line. Nothing heavy is imported before a command needs it: `bloomery --help` has to be instant.

Exit codes: 0 done, 2 bad usage or recipe, 3 contract broken, 4 no candidate passed or the release was refused, 1
anything else.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from bloomery.flows.cli.commands import contracts, keys
from bloomery.flows.cli.commands.approve import approve
from bloomery.flows.cli.commands.backfill import backfill
from bloomery.flows.cli.commands.container import container
from bloomery.flows.cli.commands.gc import gc
from bloomery.flows.cli.commands.init import init
from bloomery.flows.cli.commands.monitor import monitor
from bloomery.flows.cli.commands.releases import compare, history, promote, rollback
from bloomery.flows.cli.commands.reproduce import reproduce
from bloomery.flows.cli.commands.serve import serve
from bloomery.flows.cli.commands.up import down, status, up
from bloomery.flows.cli.exit_codes import at_work, told

app = typer.Typer(
    name="bloomery",
    help="From rows and a contract to a smaller, faster, served model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(contracts.app, name="contract")
app.add_typer(keys.app, name="key")
app.command()(init)
app.command()(serve)
for command in (up, status, down, promote, approve, rollback, history, compare):
    app.command()(command)
app.command()(backfill)
app.command()(reproduce)
app.command()(container)
app.command()(monitor)
app.command()(gc)

RecipeName = Annotated[str, typer.Argument(help="A name in deployments/recipes/, or the path of a recipe file.")]
Period = Annotated[str | None, typer.Option(help="Of a dated recipe, such as 2019-02; else the last one that ended.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def run(recipe: RecipeName, period: Period = None, as_json: AsJson = False) -> None:
    """Run a recipe from its rows to a served champion."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with told(as_json):
        log = require_state_folder().logs / f"run-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    from bloomery.flows.cli.display import Progress, engines_to_log, print_release

    begin = time.perf_counter()
    with engines_to_log(log) as (out, err), told(as_json, out, err, log):
        from bloomery.flows.execution.local_run import run_recipe

        if as_json:
            release = run_recipe(recipe, period)
            out.file.write(release.model_dump_json(by_alias=True, exclude_defaults=True) + "\n")
        else:
            with Progress(out):
                release = run_recipe(recipe, period)
            print_release(out, release, time.perf_counter() - begin, recipe, period)


@app.command()
def check(recipe: RecipeName, period: Period = None, as_json: AsJson = False) -> None:
    """Read recipe and contract, look for the data, and print what a run would compute and what it would find."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with told(as_json):
        from bloomery.flows.recipe.recipe import read_recipe

        wanted = read_recipe(recipe, period)
        log = require_state_folder().logs / f"check-{os.getpid()}.log"
    from bloomery.flows.cli.display import engines_to_log

    with engines_to_log(log) as (out, err), told(as_json, out, err, log):
        from bloomery.flows.execution.dry_run import plan
        from bloomery.flows.run_control.machine_requirements import require_machine

        require_machine(wanted)
        steps = plan(wanted).steps
        if as_json:
            document = {
                "recipe": wanted.name,
                "digest": wanted.digest,
                "contract": f"{wanted.contract.name} {wanted.contract.version}",
                "stages": [{"stage": step.stage, "found": step.found} for step in steps],
            }
            out.file.write(json.dumps(document) + "\n")
            return
        out.print(f"[bold]{' '.join(wanted.title)}[/] r{wanted.digest[:8]}: {wanted.description}")
        out.print(f"contract {wanted.contract.name} {wanted.contract.version}, {len(wanted.contract.rules())} rules")
        out.print(f"data     {wanted.data.described}")
        for step in steps:
            state = "[yellow]compute[/]" if step.found is None else f"[cyan]found[/]    {step.found[:16]}"
            out.print(f"  {step.stage:<9} {state}")


@app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="NAME for all versions; NAME:3 or NAME@champion for one; a bento's folder or file.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show the versions of a model, or one version's lineage and figures."""
    with at_work(as_json, "show") as out:
        from bloomery.flows.cli.commands import show as shown

        draw: Any
        if Path(name).is_file() or (Path(name) / "src").is_dir():
            document, draw = shown.carried(name), shown.as_carried
        elif "@" in name or ":" in name:
            document, draw = shown.version(name), shown.as_tree
        else:
            document, draw = shown.versions(name), shown.as_list
        if as_json:
            out.file.write(json.dumps(document) + "\n")
        else:
            out.print(draw(document))


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Look at all that a run needs: versions, Java, ports, disk, GPU, state folder."""
    with told(as_json):
        from bloomery.flows.cli.commands.doctor import examine

        findings = examine()
        if as_json:
            typer.echo(json.dumps([finding._asdict() for finding in findings]))
        else:
            from rich.console import Console

            console = Console()
            for finding in findings:
                console.print(
                    f"{'[green]✓[/]' if finding.is_fine else '[red]✗[/]'} {finding.what:<14} {finding.detail}"
                )
    if not all(finding.is_fine for finding in findings):
        raise SystemExit(1)


def main() -> None:
    """Run the command line and end the process.

    Servers have ended and files are closed by then. Python would take another second or more to take apart what the
    engines have loaded, so it is not asked to.
    """
    try:
        app()
        code: object = 0
    except SystemExit as end:
        code = end.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
