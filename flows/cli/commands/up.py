"""`bloomery up`, `status` and `down`: servers, worker and the endpoints of all champions on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bloomery.data_contracts.errors import BloomeryError, DataMissing, EngineMissing, SettingInvalid
from bloomery.flows.cli.exit_codes import command_session

if TYPE_CHECKING:
    from bloomery.tasks.infrastructure.service_status import ServiceStatus
    from bloomery.tasks.infrastructure.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
_START_TIMEOUT_S = 300.0
_MAX_PROBLEMS = 20  # printed


class RecipeSelection(NamedTuple):
    """The recipes to register, and why other YAML files of the current folder are not registered."""

    references: dict[str, str]  # by the name of the recipe: the name of a bundled one, or an absolute path
    problems: dict[str, str]  # by path


def up(
    recipes: Annotated[
        list[str] | None,
        typer.Argument(help="Recipes to register besides your own, by name or path."),
    ] = None,
    bundled: Annotated[bool, typer.Option("--bundled", help="Also register all recipes of Bloomery.")] = False,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the MLflow server.")] = 5000,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the first endpoint; others follow.")] = 3000,
    as_json: AsJson = False,
) -> None:
    """Start and supervise Prefect, a worker, MLflow and all endpoints."""
    with command_session(as_json, "up") as out:
        from bloomery.tasks.infrastructure.service_status import read_service_status
        from bloomery.tasks.infrastructure.settings import settings

        selection = select_recipes(recipes or (), with_bundled=bundled)  # an invalid one is reported before a start
        home = settings().home
        status = read_service_status(home)
        if status is None:
            _start(settings(), prefect_port, mlflow_port, port, list(selection.references.values()))
        elif selection.references:
            _register(list(selection.references.values()), settings())
        status = _wait(home)
        if not as_json:
            _print_selection(out, selection)
        _report(out, as_json, status)


def select_recipes(requested: Sequence[str], *, with_bundled: bool) -> RecipeSelection:
    """Returns the requested recipes, the user's own ones and, on request, the bundled ones.

    The user's own ones are those in the current folder, and those that have run in this state folder. An invalid one
    that was not requested is left out.

    Raises:
        DataMissing, RecipeInvalid and other errors of a requested recipe.
        SettingInvalid: two requested recipes have one name.
    """
    from bloomery.flows.recipe.recipe import read_recipe
    from bloomery.flows.recipe.recipe_files import (
        RECIPES,
        bundled_recipes,
        find_recipe,
        other_files,
        own_recipes,
        reference_of,
    )

    references: dict[str, str] = {}
    for path in map(find_recipe, requested):
        name, reference = read_recipe(str(path)).name, reference_of(path)
        if references.setdefault(name, reference) != reference:
            raise SettingInvalid(
                f"two recipes are named {name!r}: {references[name]} and {reference}",
                required="recipes of different names, since their deployments have these names",
                where="the command line",
                remedy="leave one out, or change its `name`",
            )
    problems = other_files()
    for name in bundled_recipes() if with_bundled else ():
        try:
            references.setdefault(read_recipe(str(RECIPES / f"{name}.yaml")).name, name)
        except (EngineMissing, DataMissing) as error:  # the package with its checkpoint, or the checkpoint
            problems[name] = f"{error.found}; {error.remedy}"
    for name, path in own_recipes().items():
        if name not in references:
            try:
                read_recipe(str(path))
                references[name] = str(path)
            except BloomeryError as error:
                problems[str(path)] = error.found
            except Exception as error:  # no file of the folder may prevent the services from starting
                problems[str(path)] = f"{type(error).__name__}: {error}"
    return RecipeSelection(references, problems)


def _print_selection(out: Any, selection: RecipeSelection) -> None:
    problems = list(selection.problems.items())
    if len(problems) > _MAX_PROBLEMS:
        out.print(f"not registered: {len(problems)} YAML files, the first of which are:", style="yellow")
    for path, problem in problems[:_MAX_PROBLEMS]:
        out.print(f"not registered: {path}: {problem}", style="yellow", markup=False, highlight=False)
    for name, reference in selection.references.items():
        out.print(f"registered: {name} ({'bundled' if reference == name else reference})", markup=False)
    if not selection.references:
        out.print("no recipe to register: run `bloomery up NAME-OR-PATH`, or `bloomery up --bundled` for the examples")


def status(as_json: AsJson = False) -> None:
    """Show the state of everything that `bloomery up` started."""
    with command_session(as_json, "status") as out:
        from bloomery.tasks.infrastructure.service_status import read_service_status
        from bloomery.tasks.infrastructure.settings import settings

        _report(out, as_json, read_service_status(settings().home))


def down(as_json: AsJson = False) -> None:
    """Stop everything that `bloomery up` started; active runs continue later."""
    with command_session(as_json, "down") as out:
        from bloomery.tasks.infrastructure.service_status import (
            find_processes,
            read_service_status,
            terminate_processes,
        )
        from bloomery.tasks.infrastructure.settings import settings

        home = settings().home
        status = read_service_status(home)
        if status is not None:
            _end_supervisor(status.pid)
        orphans = find_processes(home)  # left by a supervisor that was killed
        terminate_processes(orphans)
        if as_json:
            out.file.write(json.dumps({"was_up": status is not None, "num_terminated": len(orphans)}) + "\n")
        else:
            out.print(
                "no services run"
                if status is None and not orphans
                else "all services have stopped; the state folder is kept"
            )


def _start(settings: Settings, prefect_port: int, mlflow_port: int, port: int, recipes: list[str]) -> None:
    """Starts a supervisor in the background."""
    from bloomery.flows.services import supervisor
    from bloomery.tasks.infrastructure.python_processes import module_command
    from bloomery.tasks.infrastructure.service_status import (
        HOME_MARKER,
        STATUS_FOLDER,
        find_processes,
        terminate_processes,
    )
    from bloomery.tasks.infrastructure.tethered_process import require_free_port

    terminate_processes(find_processes(settings.home))
    plan = supervisor.ServicePlan(
        prefect_port=prefect_port if "PREFECT_API_URL" not in os.environ else None,
        mlflow_port=mlflow_port if settings.tracking_is_local else None,
        first_endpoint_port=port,
        recipes=tuple(recipes),
    )
    for server_port in (plan.prefect_port, plan.mlflow_port):
        if server_port is not None:
            require_free_port("127.0.0.1", server_port)
    _prepare(settings)
    (settings.home / STATUS_FOLDER).mkdir(parents=True, exist_ok=True)
    with (settings.logs / "up.log").open("ab") as log:
        subprocess.Popen(
            module_command(supervisor.__name__, plan.model_dump_json()),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it outlives the terminal
            env={**os.environ, HOME_MARKER: str(settings.home)},
        )


def _prepare(settings: Settings) -> None:
    """Creates MLflow's tables before several processes need them, and points endpoints to existing champions."""
    from bloomery.data_contracts.errors import BloomeryError
    from bloomery.tasks.registry import champion as promotions
    from bloomery.tasks.registry import model_registry
    from bloomery.tasks.tracking import mlflow_runs

    mlflow_runs.client()
    for name in model_registry.list_names():
        if model_registry.find_champion(name) is not None and not promotions.pointer_folder(name).is_dir():
            try:
                promotions.write_champion_pointer(name)
            except (BloomeryError, OSError):
                continue  # its bento is gone, which `serve` reports


def _register(recipes: list[str], settings: Settings) -> None:
    """Registers the recipes with the running Prefect server."""
    from bloomery.flows.services import prefect_deployments
    from bloomery.tasks.infrastructure.python_processes import module_command

    assert settings.prefect_api_url is not None
    command = module_command(prefect_deployments.__name__, "--", *recipes)
    process = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=prefect_deployments.ROOT
    )
    if process.returncode != 0:
        reason = prefect_deployments.failure_reason(process.stderr + process.stdout)
        raise EngineMissing(
            f"the deployments could not be registered: {reason}",
            required="a Prefect server that responds",
            where=settings.prefect_api_url,
            remedy="check `bloomery status`",
        )


def _wait(home: Path) -> ServiceStatus:
    """Returns the status once each service has responded or failed.

    Raises:
        EngineMissing: the supervisor has ended, or the timeout has passed.
    """
    from bloomery.tasks.infrastructure.service_status import read_service_status
    from bloomery.tasks.infrastructure.tethered_process import slowdown

    start_time, was_up = time.monotonic(), False
    while time.monotonic() - start_time < _START_TIMEOUT_S * slowdown():
        status = read_service_status(home)
        if status is not None and status.is_settled:
            return status
        was_up |= status is not None
        if status is None and (was_up or time.monotonic() - start_time > 30 * slowdown()):
            break
        time.sleep(0.2)
    raise EngineMissing(
        "the services did not start",
        required="a running supervisor, and services that respond",
        where=str(home / "logs"),
        remedy="read up.log there, and the files up-*; if the machine is busy, run `bloomery up` again later",
    )


def _end_supervisor(pid: int, timeout_s: float = 60.0) -> None:
    import psutil

    try:
        process = psutil.Process(pid)
        process.terminate()
        process.wait(timeout_s)
    except psutil.TimeoutExpired:
        process.kill()
    except psutil.NoSuchProcess:
        pass


def _report(out: Any, as_json: bool, status: ServiceStatus | None) -> None:
    """Prints the status. Ends with exit code 1 if a server has failed."""
    if as_json:
        document = {"is_up": False, "services": []} if status is None else {"is_up": True, **status.model_dump()}
        out.file.write(json.dumps(document) + "\n")
    elif status is None:
        out.print("no services run; `bloomery up` starts them")
    else:
        out.print(_table(status))
    from rich.markup import escape

    failed = [] if status is None else [server for server in status.services if server.state == "failed"]
    if failed and not as_json:
        for server in failed:
            out.print(f"[red]✗[/] {escape(f'{server.name}: {server.reason}')}\n  log: {escape(str(server.log))}")
    if failed:
        raise SystemExit(1)


def _table(status: ServiceStatus) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("service", "state", "address", "process", "restarts"):
        table.add_column(heading)
    for server in status.services:
        colour = {"up": "green", "starting": "yellow", "failed": "red"}[server.state]
        name = f"endpoint of {server.name}" if server.kind == "endpoint" else server.name
        pid = "" if server.pid is None else str(server.pid)
        restarts = str(server.restarts) if server.restarts else ""
        table.add_row(escape(name), f"[{colour}]{server.state}[/]", escape(server.url), pid, restarts)
    return table
