"""Measures the overhead of orchestration: `bloomery run` and the same stages in plain Python, in turns.

    python benchmarks/orchestration/overhead.py [--rounds 1] [--server off on postgres] [--epochs N | --recipe NAME]

`--epochs 400` trains `digits` for that many epochs, so that the run takes a minute or more; `--recipe pendigits` runs a
recipe whose data is in BLOOMERY_DATA. `--server` selects the servers:

- off: no permanent server. `bloomery run` starts its own for a run; MLflow uses a file of the state folder;
- on: a Prefect server and an MLflow server, each on its SQLite file, used by both forms;
- postgres: both servers on one PostgreSQL.

Each round runs both forms from the start of the process to its end:

- cold: an empty state folder. With the server off Prefect's and MLflow's databases are created too (plain Python
  creates MLflow's only); permanent servers have theirs already;
- warm (server off): a state folder with both databases, without any stage output;
- again: nothing changed, every stage found.

It prints Markdown: wall-clock and processor seconds (of all processes, with those of permanent servers listed
separately), what a no-change re-run takes beyond importing the same modules, the seconds of each stage, and
whether all runs produced the same digests.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from resource_usage import (
    ROOT,
    CommandFailed,
    Usage,
    describe_machine,
    environment,
    format_rounds,
    format_table,
    median_ratio,
    run_command,
)
from servers import Servers, permanent_servers, postgres_program

PLAIN = """
import json, sys
from bloomery.flows.order import run_stages
from bloomery.flows.stages import PLAIN_STAGES
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.ingest.stage import locate_source
from bloomery.tasks.orchestration import events
from bloomery.tasks.train.initial_weights import locate_initial_weights
stages = {}
def record_seconds(event):
    if isinstance(event, events.StageEnded):
        stages[event.name] = event.seconds
events.subscribe(record_seconds)
recipe = read_recipe(sys.argv[1])
source = locate_source(recipe.data, recipe.contract.personal_columns)
release = run_stages(PLAIN_STAGES, recipe, source, locate_initial_weights(recipe.training.start_from))
spark_session.stop_session()
print("RESULT", json.dumps({"release": json.loads(release.model_dump_json(by_alias=True)), "stages": stages}))
"""
# Runs the command line, and writes the names of all modules that it has imported to a file.
TRACED = """
import contextlib, json, sys
from pathlib import Path
from bloomery.flows.cli.main import app
names, sys.argv = sys.argv[1], ["bloomery", *sys.argv[2:]]
with contextlib.suppress(SystemExit):
    app()
Path(names).write_text(json.dumps([name for name in sys.modules if name != "__main__"]))
"""
# Imports the same modules in the same order, and ends as `bloomery` does.
IMPORTING = """
import contextlib, importlib, json, os, sys
from pathlib import Path
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
apply_engine_environment()
require_state_folder()
for name in json.loads(Path(sys.argv[1]).read_text()):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
os._exit(0)
"""
FORMS = ("prefect", "plain")  # `bloomery run`, and the same stages in plain Python
NUM_RERUNS = 3  # with nothing changed, each followed by a process that only imports the same modules


class Run(NamedTuple):
    usage: Usage
    servers_s: float  # processor seconds of the permanent servers during the run
    release: dict[str, Any]
    stages: dict[str, float]  # seconds of each stage; empty for `bloomery run`


class Setup(NamedTuple):
    """Settings that all runs of one `--server` share."""

    recipe: str
    folder: Path
    servers: Servers | None

    def environment(self, home: Path) -> dict[str, str]:
        return environment(home, **(self.servers.variables if self.servers else {}))

    def script(self, name: str, text: str) -> str:
        # Scripts need a file: without one, pyspark runs its own doctests in the main module, and exits.
        path = self.folder / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def run(self, form: str, home: Path) -> Run:
        start_s = self.servers.processor_s() if self.servers else 0.0
        if form == "prefect":
            command = [sys.executable, "-m", "bloomery.flows.cli", "run", self.recipe, "--json"]
        else:
            command = [sys.executable, self.script("plain", PLAIN), self.recipe]
        usage = run_command(command, self.environment(home))
        servers_s = self.servers.processor_s() - start_s if self.servers else 0.0
        if form == "prefect":
            return Run(usage, servers_s, json.loads(usage.output), {})
        result = json.loads(usage.output.rpartition("RESULT")[2])
        return Run(usage, servers_s, result["release"], result["stages"])

    def run_imports(self, home: Path) -> Usage:
        """Runs a process that only imports what a no-change re-run imports."""
        modules_file = str(self.folder / "modules.json")
        traced = [sys.executable, self.script("traced", TRACED), modules_file, "run", self.recipe, "--json"]
        run_command(traced, self.environment(home))
        return run_command([sys.executable, self.script("importing", IMPORTING), modules_file], self.environment(home))


def remove_outputs(home: Path) -> None:
    """Removes every stage output and bento but not the databases, so the next run computes all stages."""
    for folder in ("stages", "bentoml"):
        shutil.rmtree(home / folder)


def collect_digests(release: dict[str, Any]) -> str:
    """Returns the digests of splits, weights, ONNX files and bento as JSON."""
    candidates = release["bento"]["choice"]["candidates"]
    trained = candidates["trained"]
    splits = [trained["dataset"][split]["sha256"] for split in ("train", "val", "test")]
    onnx = [candidate["sha256"] for candidate in candidates["candidates"]]
    return json.dumps([splits, trained["digest"], onnx, release["bento"]["digest"]])


def states_of(server: str) -> tuple[str, ...]:
    """Returns the states of the state folder in which runs start."""
    return ("cold", "warm", "again") if server == "off" else ("cold", "again")


def run_round(setup: Setup, server: str, number: int) -> dict[str, Any]:
    """Runs both forms in every state; the order alternates between rounds."""
    homes = {form: setup.folder / f"{form}-{number}" for form in FORMS}
    result: dict[str, Any] = {}
    for state in states_of(server):
        for form in FORMS if number % 2 else FORMS[::-1]:
            if state == "warm":
                remove_outputs(homes[form])
            print(f"server {server}, round {number + 1}: {state}, {form}", file=sys.stderr)
            result[f"{state} {form}"] = setup.run(form, homes[form])
    result["reruns"] = [
        (setup.run("prefect", homes["prefect"]).usage.processor_s, setup.run_imports(homes["prefect"]).processor_s)
        for _ in range(NUM_RERUNS)
    ]
    return result


def format_row(server: str, state: str, rounds: list[dict[str, Any]]) -> list[str]:
    prefect_runs, plain_runs = ([result[f"{state} {form}"] for result in rounds] for form in FORMS)
    cells = [f"{server}, {state}"]
    for name in ("wall_s", "processor_s"):
        prefect_s, plain_s = ([getattr(run.usage, name) for run in runs] for runs in (prefect_runs, plain_runs))
        cells += [format_rounds(prefect_s), format_rounds(plain_s), f"{median_ratio(prefect_s, plain_s):.3f}"]
    return [*cells, *(format_rounds([run.servers_s for run in runs]) for runs in (prefect_runs, plain_runs))]


@contextlib.contextmanager
def open_setup(server: str, recipe: str, folder: Path) -> Iterator[Setup]:
    folder.mkdir()
    if server == "off":
        yield Setup(recipe, folder, None)
        return
    with permanent_servers(folder, on_postgres=server == "postgres") as servers:
        yield Setup(recipe, folder, servers)


def write_long_recipe(epochs: int, folder: Path) -> str:
    """Writes the recipe `digits` with this number of epochs. Returns its path."""
    recipe = yaml.safe_load((ROOT / "deployments" / "recipes" / "digits.yaml").read_text(encoding="utf-8"))
    recipe["contract"] = str(ROOT / "data_contracts" / "contracts" / recipe["contract"])
    recipe["training"] |= {"epochs": epochs}
    path = folder / "digits-long.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def report(results: dict[str, list[dict[str, Any]]]) -> None:
    """Prints all tables."""
    heads = ["server, run", "`bloomery run`, wall (s)", "plain Python, wall (s)", "ratio, median"]
    heads += ["`bloomery run`, processor (s)", "plain Python, processor (s)", "ratio, median"]
    heads += ["permanent servers during `bloomery run`, processor (s)", "during plain Python (s)"]
    lines = [format_row(server, state, rounds) for server, rounds in results.items() for state in states_of(server)]
    print(f"{format_table(heads, lines)}\n")
    lines = []
    for server, rounds in results.items():
        pairs = [pair for result in rounds for pair in result["reruns"]]
        reruns, imports = ([pair[index] for pair in pairs] for index in (0, 1))
        difference = statistics.median(reruns) - statistics.median(imports)
        lines.append([server, format_rounds(reruns, 2), format_rounds(imports, 2), f"{difference:.2f}"])
    print("A no-change re-run, in processor seconds of all its processes:\n")
    print(f"{format_table(['server', 'rerun', 'imports only', 'difference of medians'], lines)}\n")
    server, rounds = next(iter(results.items()))
    key = f"{states_of(server)[-2]} plain"
    lines = [
        [stage, f"{statistics.median(result[key].stages[stage] for result in rounds):.2f}"]
        for stage in rounds[0][key].stages
    ]
    print(f"{format_table(['stage', f'seconds ({key} Python, server {server}, with the start of engines)'], lines)}\n")
    runs = [run for rounds in results.values() for result in rounds for run in result.values() if isinstance(run, Run)]
    digests = {collect_digests(run.release) for run in runs}
    verdict = "the same digests" if len(digests) == 1 else f"{len(digests)} different sets of digests"
    print(f"All {len(runs)} releases have {verdict}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--server", nargs="+", choices=("off", "on", "postgres"), default=["off", "on", "postgres"])
    recipe_options = parser.add_mutually_exclusive_group()
    recipe_options.add_argument("--recipe", default="digits")
    recipe_options.add_argument("--epochs", type=int, help="run digits with this number of epochs")
    options = parser.parse_args()
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = write_long_recipe(options.epochs, folder) if options.epochs else options.recipe
        for server in options.server:
            if server == "postgres" and postgres_program("postgres") is None:
                print("- PostgreSQL is left out: it is not installed.")
                continue
            try:
                with open_setup(server, recipe, folder / server) as setup:
                    results[server] = [run_round(setup, server, number) for number in range(options.rounds)]
            except CommandFailed as error:
                raise SystemExit(str(error)) from None
    name = f"digits with {options.epochs} epochs" if options.epochs else options.recipe
    print(f"{name}: {describe_machine(options.rounds)}\n")
    if results:
        report(results)


if __name__ == "__main__":
    main()
