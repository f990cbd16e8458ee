"""`bloomery up`, `status` and `down`: servers, a worker and the endpoints of all champions, on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.data_contracts.errors import EngineMissing
from bloomery.flows.cli.exit_codes import at_work

if TYPE_CHECKING:
    from bloomery.tasks.infrastructure.service_status import Standing
    from bloomery.tasks.infrastructure.settings import Settings

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
_PATIENCE_S = 300.0


def up(
    recipes: Annotated[list[str] | None, typer.Argument(help="Recipe files beside those that come along.")] = None,
    prefect_port: Annotated[int, typer.Option(min=1, max=65535, help="Of Prefect's server and page.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(min=1, max=65535, help="Of MLflow's server and page.")] = 5000,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the first endpoint; others follow.")] = 3000,
    as_json: AsJson = False,
) -> None:
    """Start Prefect, a worker, MLflow and every champion's endpoint, and keep them up until `bloomery down`."""
    with at_work(as_json, "up") as out:
        from bloomery.flows.recipe.recipe import known_recipes, read_recipe
        from bloomery.tasks.infrastructure.service_status import read_standing
        from bloomery.tasks.infrastructure.settings import settings

        wanted = [*known_recipes(), *(str(Path(one).resolve()) for one in recipes or ())]
        for reference in wanted:
            read_recipe(reference)  # what is wrong in a file is told before anything is started
        home = settings().home
        standing = read_standing(home)
        if standing is None:
            _start(settings(), prefect_port, mlflow_port, port, wanted)
        elif recipes:
            _register(standing, wanted, settings())
        _tell(out, as_json, _wait(home))


def status(as_json: AsJson = False) -> None:
    """Show what `bloomery up` has started, and whether it answers."""
    with at_work(as_json, "status") as out:
        from bloomery.tasks.infrastructure.service_status import read_standing
        from bloomery.tasks.infrastructure.settings import settings

        _tell(out, as_json, read_standing(settings().home))


def down(as_json: AsJson = False) -> None:
    """End what `bloomery up` has started. A run that is under way goes on at the next `up`."""
    with at_work(as_json, "down") as out:
        from bloomery.tasks.infrastructure.service_status import end, processes_of, read_standing
        from bloomery.tasks.infrastructure.settings import settings

        home = settings().home
        standing = read_standing(home)
        if standing is not None:
            _end_supervisor(standing.pid)
        left = processes_of(home)  # what a supervisor that was killed could not end
        end(left)
        if as_json:
            out.file.write(json.dumps({"was_up": standing is not None, "ended": len(left)}) + "\n")
        else:
            out.print("nothing is up" if standing is None and not left else "down; the state is kept")


def _start(chosen: Settings, prefect_port: int, mlflow_port: int, port: int, recipes: list[str]) -> None:
    """Afterwards a supervisor is at work in the background."""
    from bloomery.flows.services.supervisor import Plan
    from bloomery.tasks.infrastructure.service_status import FOLDER, MARK, end, processes_of
    from bloomery.tasks.infrastructure.tethered_process import require_free

    end(processes_of(chosen.home))
    is_ours = {"prefect": "PREFECT_API_URL" not in os.environ, "mlflow": chosen.tracking_is_local}
    plan = Plan(
        prefect_port=prefect_port if is_ours["prefect"] else None,
        mlflow_port=mlflow_port if is_ours["mlflow"] else None,
        first_endpoint_port=port,
        recipes=tuple(recipes),
    )
    for one in (plan.prefect_port, plan.mlflow_port):
        if one is not None:
            require_free("127.0.0.1", one)
    _prepare(chosen)
    (chosen.home / FOLDER).mkdir(parents=True, exist_ok=True)
    with (chosen.logs / "up.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-m", "bloomery.flows.services.supervisor", plan.model_dump_json()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # it stays when the terminal is closed
            env={**os.environ, MARK: str(chosen.home)},
        )


def _prepare(chosen: Settings) -> None:
    """Make MLflow's tables before several processes ask for them, and point endpoints to the champions there are."""
    from bloomery.data_contracts.errors import BloomeryError
    from bloomery.tasks.registry import champion as promotions
    from bloomery.tasks.registry import model_registry

    for name in model_registry.names():
        if model_registry.champion(name) is not None and not promotions.folder_of(name).is_dir():
            try:
                promotions.point_to_champion(name)
            except (BloomeryError, OSError):
                continue  # its bento is gone: there is nothing to serve, and `serve` says so


def _register(standing: Standing, recipes: list[str], chosen: Settings) -> None:
    """Afterwards the standing Prefect knows these recipes, too."""
    assert chosen.prefect_api_url is not None
    command = [sys.executable, "-m", "bloomery.flows.services.prefect_deployments", *recipes]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if ended.returncode != 0:
        from bloomery.flows.services.prefect_deployments import why_ended

        raise EngineMissing(
            f"the deployments could not be registered: {why_ended(ended.stderr + ended.stdout)}",
            required="a Prefect server that answers",
            where=chosen.prefect_api_url,
            remedy="look at `bloomery status`",
        )


def _wait(home: Path) -> Standing:
    """What stands, once each has answered or failed.

    Raises:
        EngineMissing: the supervisor has ended, or the time is over.
    """
    from bloomery.tasks.infrastructure.service_status import read_standing

    deadline, seen = time.monotonic() + _PATIENCE_S, False
    begun = time.monotonic()
    while time.monotonic() < deadline:
        standing = read_standing(home)
        if standing is not None and standing.is_settled:
            return standing
        seen |= standing is not None
        if standing is None and (seen or time.monotonic() - begun > 30):
            break
        time.sleep(0.2)
    raise EngineMissing(
        "what `up` started does not stand",
        required="a supervisor that goes on, and servers that answer",
        where=str(home / "logs"),
        remedy="read up.log there, and those beside it whose names begin so",
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


def _tell(out: Any, as_json: bool, standing: Standing | None) -> None:
    if as_json:
        document = {"is_up": False, "servers": []} if standing is None else {"is_up": True, **standing.model_dump()}
        out.file.write(json.dumps(document) + "\n")
    elif standing is None:
        out.print("nothing is up; `bloomery up` starts it")
    else:
        out.print(_as_table(standing))
    failed = [] if standing is None else [server for server in standing.servers if server.state == "failed"]
    if failed and not as_json:
        for server in failed:
            out.print(f"[red]✗[/] {server.name}: {server.why}\n  log: {server.log}")
    if failed:
        raise SystemExit(1)


def _as_table(standing: Standing) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("what", "state", "address", "process", "started again"):
        table.add_column(heading)
    for server in standing.servers:
        colour = {"up": "green", "starting": "yellow", "failed": "red"}[server.state]
        what = f"endpoint of {server.name}" if server.kind == "endpoint" else server.name
        pid = "" if server.pid is None else str(server.pid)
        again = str(server.restarts) if server.restarts else ""
        table.add_row(what, f"[{colour}]{server.state}[/]", server.url, pid, again)
    return table
