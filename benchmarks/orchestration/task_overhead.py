"""Measures the overhead of one task: N trivial stages, called directly and as Prefect tasks of one flow.

    python benchmarks/orchestration/task_overhead.py [--tasks 100] [--rounds 3] [--server off on postgres]

`--server` is as in `overhead.py`: the server that `bloomery run` starts, a permanent one, or one on PostgreSQL. N
stages are called in each of three forms in one process, always with new outputs: the bare function, the stage called
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

from overhead import open_setup
from resource_usage import CommandFailed, describe_machine, environment, format_table, run_command
from servers import Servers, postgres_program

CALLS = ("function", "stage", "task")


def measure_calls(num_tasks: int) -> dict[str, list[float]]:
    """Returns wall-clock, processor and server processor milliseconds per call, for each form of call."""
    import psutil

    from bloomery.flows.execution.ephemeral_server import ephemeral_prefect_api
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.settings import require_state_folder

    apply_engine_environment()
    require_state_folder()
    with ephemeral_prefect_api() as start_server:
        wait_until_ready = start_server()
        ephemeral_server = Servers({}, tuple(child.pid for child in psutil.Process().children()))
        from prefect import flow

        from bloomery.data_contracts.records.records import Record
        from bloomery.tasks.orchestration.stage import stage
        from bloomery.tasks.orchestration.stage_store import Output

        def function(out: Output, number: int) -> Record:
            return Record(digest=str(number))

        # Annotations are objects, since a stage cannot resolve names that are local to this function.
        function.__annotations__ = {"out": Output, "number": int, "return": Record}
        function.__module__ = Path(__file__).stem  # a stage cannot import `__main__` by name
        trivial_stage = stage()(function)
        wait_until_ready()
        flow(name="first")(lambda: trivial_stage.as_task(-1))()  # warm-up: the first flow of a process is slower
        figures: dict[str, list[float]] = {}

        def measure(name: str, call: Callable[[int], Any], first: int) -> None:
            start = time.perf_counter(), time.process_time(), ephemeral_server.processor_s()
            for number in range(first, first + num_tasks):
                call(number)
            end = time.perf_counter(), time.process_time(), ephemeral_server.processor_s()
            figures[name] = [(after - before) * 1000 / num_tasks for before, after in zip(start, end, strict=True)]

        unused_output = Output("function", "0", Path())
        measure("function", lambda number: function(unused_output, number), 0)
        measure("stage", trivial_stage, 0)
        flow(name="many")(lambda: measure("task", trivial_stage.as_task, num_tasks))()
    return figures


def measure_server(server: str, num_tasks: int, num_rounds: int, folder: Path) -> list[dict[str, list[float]]]:
    rounds = []
    with open_setup(server, "", folder) as setup:
        for number in range(num_rounds):
            home = folder / f"home-{number}"
            variables = environment(home, **(setup.servers.variables if setup.servers else {}))
            start_s = setup.servers.processor_s() if setup.servers else 0.0
            command = [sys.executable, str(Path(__file__).resolve()), "--inner", "--tasks", str(num_tasks)]
            output = run_command(command, variables).output
            figures: dict[str, list[float]] = json.loads(output.rpartition("RESULT")[2])
            if setup.servers:
                # All work of the server for this process counts as the tasks', including the start and end of the flow.
                figures["task"][2] = (setup.servers.processor_s() - start_s) * 1000 / num_tasks
            rounds.append(figures)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", nargs="+", choices=("off", "on", "postgres"), default=["off", "on", "postgres"])
    parser.add_argument("--inner", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        with contextlib.redirect_stdout(sys.stderr):
            figures = measure_calls(options.tasks)
        print("RESULT", json.dumps(figures))
        return
    lines, left_out = [], []
    with tempfile.TemporaryDirectory() as folder:
        for server in options.server:
            if server == "postgres" and postgres_program("postgres") is None:
                left_out.append("- PostgreSQL is left out: it is not installed.")
                continue
            print(f"server {server}", file=sys.stderr)
            try:
                rounds = measure_server(server, options.tasks, options.rounds, Path(folder) / server)
            except CommandFailed as error:
                raise SystemExit(str(error)) from None
            for call in CALLS:
                medians = [statistics.median(figures[call][index] for figures in rounds) for index in range(3)]
                lines.append([f"{server}, {call}", *(f"{figure:.2f}" for figure in medians)])
    print(f"{options.tasks} calls each; {describe_machine(options.rounds)}; medians, per call\n")
    heads = ["server, call", "wall (ms)", "processor (ms)", "server's processor (ms)"]
    print(format_table(heads, lines))
    print("\n".join(["", *left_out]))


if __name__ == "__main__":
    main()
