"""Measures the cost of one task: N trivial stages, called directly and as Prefect tasks of one flow.

    python benchmarks/orchestration/tasks_cost.py [--tasks 100] [--rounds 3] [--server off on postgres]

`--server` is as in `overhead.py`: the server that `bloomery run` starts, a permanent one, or one on PostgreSQL. N
stages are called in each of three ways in one process, always with new outputs: the bare function, the stage called
directly (which writes its output atomically, with fsync), and the stage as a task. It prints milliseconds per call, and
processor milliseconds of the process and of its servers, as a Markdown table. Those of permanent servers include
everything from the process's start to its end, also the flow itself and idle services.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from overhead import measured_with
from servers import Servers, postgres_program
from spent import Failed, environment, machine, spend, table

CALLS = ("function", "stage", "task")


def inner(num_tasks: int) -> dict[str, list[float]]:
    """Returns wall, own and server processor milliseconds per call, for each way of calling."""
    import psutil

    from bloomery.flows.execution.ephemeral_server import ephemeral_prefect_api
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.settings import require_state_folder

    apply_engine_environment()
    require_state_folder()
    with ephemeral_prefect_api() as start_server:
        wait_until_ready = start_server()
        own = Servers({}, tuple(child.pid for child in psutil.Process().children()))
        from prefect import flow

        from bloomery.data_contracts.records.records import Record
        from bloomery.tasks.orchestration.stage import stage
        from bloomery.tasks.orchestration.stage_store import Output

        def function(out: Output, number: int) -> Record:
            return Record(digest=str(number))

        # As objects, since names of this function cannot be looked up where a stage looks them up.
        function.__annotations__ = {"out": Output, "number": int, "return": Record}
        function.__module__ = Path(__file__).stem  # `__main__` cannot be found by name either
        made = stage()(function)
        wait_until_ready()
        flow(lambda: made.as_task(-1), name="first")()  # what only the first flow pays
        figures: dict[str, list[float]] = {}

        def measure(name: str, call: Callable[[int], Any], first: int) -> None:
            begin = time.perf_counter(), time.process_time(), own.processor_s()
            for number in range(first, first + num_tasks):
                call(number)
            end = time.perf_counter(), time.process_time(), own.processor_s()
            figures[name] = [(b - a) * 1000 / num_tasks for a, b in zip(begin, end, strict=True)]

        nowhere = Output("function", "0", Path())
        measure("function", lambda number: function(nowhere, number), 0)
        measure("stage", made, 0)
        flow(lambda: measure("task", made.as_task, num_tasks), name="many")()
    return figures


def one_server(server: str, num_tasks: int, num_rounds: int, folder: Path) -> list[dict[str, list[float]]]:
    rounds = []
    with measured_with(server, "", folder) as measuring:
        for number in range(num_rounds):
            home = folder / f"home-{number}"
            variables = environment(home, **(measuring.servers.variables if measuring.servers else {}))
            before = measuring.servers.processor_s() if measuring.servers else 0.0
            command = [sys.executable, str(Path(__file__).resolve()), "--inner", "--tasks", str(num_tasks)]
            found: dict[str, list[float]] = json.loads(spend(command, variables).printed.rpartition("RESULT")[2])
            if measuring.servers:
                # All that the server did for this process, flow's start and end included, counts as the tasks'.
                found["task"][2] = (measuring.servers.processor_s() - before) * 1000 / num_tasks
            rounds.append(found)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", nargs="+", choices=("off", "on", "postgres"), default=["off", "on", "postgres"])
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.inner:
        with contextlib.redirect_stdout(sys.stderr):
            figures = inner(told.tasks)
        print("RESULT", json.dumps(figures))
        return
    lines, left_out = [], []
    with tempfile.TemporaryDirectory() as folder:
        for server in told.server:
            if server == "postgres" and postgres_program("postgres") is None:
                left_out.append("- PostgreSQL is not installed: left out.")
                continue
            print(f"server {server}", file=sys.stderr)
            try:
                rounds = one_server(server, told.tasks, told.rounds, Path(folder) / server)
            except Failed as failure:
                raise SystemExit(str(failure)) from None
            for call in CALLS:
                medians = [statistics.median(one[call][place] for one in rounds) for place in range(3)]
                lines.append([f"{server}, {call}", *(f"{figure:.2f}" for figure in medians)])
    print(f"{told.tasks} calls each; {machine(told.rounds)}; medians, per call\n")
    print(table(["server, how it is called", "wall (ms)", "processor (ms)", "server's processor (ms)"], lines))
    print("\n".join(["", *left_out]))


if __name__ == "__main__":
    main()
