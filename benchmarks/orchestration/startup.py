"""Measures the processor seconds of commands that compute nothing, in one or several checkouts, in turns.

    python benchmarks/orchestration/startup.py [OLD NEW …] [--rounds 5] [--recipe digits]

Each checkout has its own `.venv`, and a state folder in which the recipe runs once before the measurement. Without a
checkout it measures this one. Processor seconds are user and system time of the command and of all processes that it
starts, from its start to its end. `serve` does not end: it is measured up to the first answer of `/readyz`, and up to
the moment when it becomes the server. It prints Markdown: the median of all rounds, and the lowest and highest figure.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path

import psutil
from resource_usage import ROOT, CommandFailed, describe_machine, environment, format_table, run_command

GOAL_S = 2.0
_START_TIMEOUT_S = 120.0
_PREDICT = """
import json, os, pathlib, sys, bloomery
model = bloomery.load(sys.argv[1])
folder = pathlib.Path(os.environ["BLOOMERY_HOME"], "bentoml", "bentos", *model.bento.split(":"))
(example, *_) = json.loads((folder / "src" / "artifacts" / "examples.json").read_text())
model.predict([example["row"]])
"""


def list_commands(recipe: str, model: str) -> dict[str, list[str]]:
    """Returns the commands to measure, by the name of their row."""
    return {
        "`--help`": ["--help"],
        "`run`, everything cached": ["run", recipe],
        "`check`": ["check", recipe],
        "`show NAME`": ["show", model],
        "`show NAME@champion`": ["show", f"{model}@champion"],
        "`history NAME`": ["history", model],
    }


def program(checkout: Path) -> list[str]:
    return [str(checkout / ".venv" / "bin" / "python"), "-P", "-m", "bloomery.flows.cli"]


def variables(checkout: Path, home: Path) -> dict[str, str]:
    return {**environment(home), "PYTHONPATH": str(checkout / "src")}


def measure_command(checkout: Path, home: Path, arguments: list[str]) -> float:
    return run_command([*program(checkout), *arguments], variables(checkout, home), cwd=home.parent).processor_s


def measure_predict(checkout: Path, home: Path, model: str) -> float:
    """Returns the processor seconds to import bloomery, load the champion, and predict the example of its bento."""
    command = [str(checkout / ".venv" / "bin" / "python"), "-P", "-c", _PREDICT, f"{model}@champion"]
    return run_command(command, variables(checkout, home), cwd=home.parent).processor_s


def measure_serve(checkout: Path, home: Path, model: str) -> tuple[float, float]:
    """Returns the processor seconds until the process becomes the server, and until the server is ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [*program(checkout), "serve", model, "--port", str(port)]
    process = subprocess.Popen(
        command,
        cwd=home.parent,
        env=variables(checkout, home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    root = psutil.Process(process.pid)
    before_server = 0.0
    deadline = time.monotonic() + _START_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise CommandFailed(f"serve ended with exit code {process.returncode}")
            if "bloomery.flows.cli" in root.cmdline():
                before_server = _processor_s(root)
            if _responds(f"http://127.0.0.1:{port}/readyz"):
                return before_server, _processor_s(root)
            time.sleep(0.02)
        raise CommandFailed(f"serve was not ready after {_START_TIMEOUT_S:.0f} s")
    finally:
        process.terminate()
        process.wait()


def _processor_s(root: psutil.Process) -> float:
    """Returns the processor seconds of a process and its descendants, with those that have ended."""
    seconds = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds


def _responds(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with contextlib.suppress(OSError), opener.open(url, timeout=1) as response:
        return bool(response.status == 200)
    return False


def measure(checkouts: list[Path], recipe: str, model: str, rounds: int) -> dict[str, dict[Path, list[float]]]:
    """Returns the figures of every round, by command and checkout."""
    figures: dict[str, dict[Path, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as folder:
        homes = {checkout: Path(folder) / str(number) / "state" for number, checkout in enumerate(checkouts)}
        for checkout, home in homes.items():
            home.parent.mkdir()
            measure_command(checkout, home, ["run", recipe])
        for _ in range(rounds):
            for name, arguments in list_commands(recipe, model).items():
                for checkout, home in homes.items():
                    figures[name][checkout].append(measure_command(checkout, home, arguments))
            for checkout, home in homes.items():
                figures["`bloomery.load(NAME).predict(rows)`"][checkout].append(measure_predict(checkout, home, model))
            for checkout, home in homes.items():
                before_server, ready = measure_serve(checkout, home, model)
                figures["`serve NAME`, until it becomes the server"][checkout].append(before_server)
                figures["`serve NAME`, until the server is ready"][checkout].append(ready)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT], metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="digits", help="name of a bundled recipe, or path of one")
    parser.add_argument("--model", default="digits", help="the name in that recipe")
    options = parser.parse_args()
    checkouts = [checkout.resolve() for checkout in options.checkouts]
    figures = measure(checkouts, options.recipe, options.model, options.rounds)
    print(f"{describe_machine(options.rounds)}; processor seconds, median (lowest to highest)\n")
    rows = [
        [name, *(f"{statistics.median(all_s):.2f} ({min(all_s):.2f} to {max(all_s):.2f})" for all_s in by.values())]
        for name, by in figures.items()
    ]
    print(format_table(["command", *(checkout.name for checkout in checkouts)], rows))
    missed = [name for name, by in figures.items() if statistics.median(by[checkouts[-1]]) > GOAL_S]
    print(f"\nabove the goal of {GOAL_S:.0f} s in {checkouts[-1].name}: {', '.join(missed) or 'none'}")


if __name__ == "__main__":
    main()
