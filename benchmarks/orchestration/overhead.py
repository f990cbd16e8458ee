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
from servers import Servers, postgres_program, standing
from spent import ROOT, Failed, Spent, environment, listed, machine, median_ratio, spend, table

PLAIN = """
import json, sys
from bloomery.flows.pipeline import PLAIN_STAGES, locate_source
from bloomery.flows.order import run_stages
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.tasks.infrastructure import spark_session as spark
from bloomery.tasks.orchestration import events
from bloomery.tasks.train.initial_weights import locate_initial_weights
stages = {}
events.watch(lambda event: stages.update({event.name: event.seconds}) if isinstance(event, events.StageEnded) else None)
recipe = read_recipe(sys.argv[1])
source = locate_source(recipe.data, recipe.contract.personal_columns)
release = run_stages(PLAIN_STAGES, recipe, source, locate_initial_weights(recipe.training.start_from))
spark.stop()
print("RESULT", json.dumps({"release": json.loads(release.model_dump_json(by_alias=True)), "stages": stages}))
"""
# Writes down what `bloomery run` has imported at its end.
TRACED = """
import contextlib, json, sys
from pathlib import Path
from bloomery.flows.cli.main import app
names, sys.argv = sys.argv[1], ["bloomery", *sys.argv[2:]]
with contextlib.suppress(SystemExit):
    app()
Path(names).write_text(json.dumps([name for name in sys.modules if name != "__main__"]))
"""
# Imports the same in the same order, and ends as `bloomery` does.
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
FORMS = ("prefect", "plain")
RE_RUNS = 3  # with nothing changed, each beside a process that imports the same


class Taken(NamedTuple):
    spent: Spent
    servers_s: float  # processor seconds of the standing servers in that time
    release: dict[str, Any]
    stages: dict[str, float]


class Measuring(NamedTuple):
    """Settings that all runs of one `--server` share."""

    recipe: str
    folder: Path
    servers: Servers | None

    def environment(self, home: Path) -> dict[str, str]:
        return environment(home, **(self.servers.variables if self.servers else {}))

    def script(self, name: str, text: str) -> str:
        # A file: pyspark takes a main module without one for its own doctests, and exits.
        path = self.folder / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def run(self, form: str, home: Path) -> Taken:
        before = self.servers.processor_s() if self.servers else 0.0
        if form == "prefect":
            command = [sys.executable, "-m", "bloomery.flows.cli", "run", self.recipe, "--json"]
        else:
            command = [sys.executable, self.script("plain", PLAIN), self.recipe]
        spent = spend(command, self.environment(home))
        servers_s = self.servers.processor_s() - before if self.servers else 0.0
        if form == "prefect":
            return Taken(spent, servers_s, json.loads(spent.printed), {})
        result = json.loads(spent.printed.rpartition("RESULT")[2])
        return Taken(spent, servers_s, result["release"], result["stages"])

    def imports(self, home: Path) -> Spent:
        """Runs a process that only imports what a no-change re-run imports."""
        names = str(self.folder / "modules.json")
        traced = [sys.executable, self.script("traced", TRACED), names, "run", self.recipe, "--json"]
        spend(traced, self.environment(home))
        return spend([sys.executable, self.script("importing", IMPORTING), names], self.environment(home))


def without_outputs(home: Path) -> None:
    """Removes every stage output and bento but not the databases, so the next run computes all stages."""
    for folder in ("stages", "bentoml"):
        shutil.rmtree(home / folder)


def digests(release: dict[str, Any]) -> str:
    chosen = release["bento"]["choice"]
    trained = chosen["candidates"]["trained"]
    parts = [trained["dataset"][part]["sha256"] for part in ("train", "val", "test")]
    onnx = [candidate["sha256"] for candidate in chosen["candidates"]["candidates"]]
    return json.dumps([parts, trained["digest"], onnx, release["bento"]["digest"]])


def temperatures(server: str) -> tuple[str, ...]:
    return ("cold", "warm", "again") if server == "off" else ("cold", "again")


def one_round(measuring: Measuring, server: str, number: int) -> dict[str, Any]:
    """Runs both forms in every state; the order alternates between rounds."""
    homes = {form: measuring.folder / f"{form}-{number}" for form in FORMS}
    result: dict[str, Any] = {}
    for temperature in temperatures(server):
        for form in FORMS if number % 2 else FORMS[::-1]:
            if temperature == "warm":
                without_outputs(homes[form])
            print(f"server {server}, round {number + 1}: {temperature}, {form}", file=sys.stderr)
            result[f"{temperature} {form}"] = measuring.run(form, homes[form])
    result["re-runs"] = [
        (measuring.run("prefect", homes["prefect"]).spent.processor_s, measuring.imports(homes["prefect"]).processor_s)
        for _ in range(RE_RUNS)
    ]
    return result


def row(server: str, temperature: str, rounds: list[dict[str, Any]]) -> list[str]:
    ours, plain = ([one[f"{temperature} {form}"] for one in rounds] for form in FORMS)
    cells = [f"{server}, {temperature}"]
    for name in ("wall_s", "processor_s"):
        figures = [[getattr(taken.spent, name) for taken in form] for form in (ours, plain)]
        cells += [*(listed(one) for one in figures), f"{median_ratio(*figures):.3f}"]
    return [*cells, *(listed([taken.servers_s for taken in form]) for form in (ours, plain))]


@contextlib.contextmanager
def measured_with(server: str, recipe: str, folder: Path) -> Iterator[Measuring]:
    folder.mkdir()
    if server == "off":
        yield Measuring(recipe, folder, None)
        return
    with standing(folder, on_postgres=server == "postgres") as servers:
        yield Measuring(recipe, folder, servers)


def lengthened(epochs: int, folder: Path) -> str:
    """Writes the recipe `digits` with this number of epochs."""
    recipe = yaml.safe_load((ROOT / "deployments" / "recipes" / "digits.yaml").read_text(encoding="utf-8"))
    recipe["contract"] = str(ROOT / "data_contracts" / "contracts" / recipe["contract"])
    recipe["training"] |= {"epochs": epochs}
    path = folder / "digits-long.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def tell(found: dict[str, list[dict[str, Any]]]) -> None:
    heads = ["server, run", "`bloomery run`, wall (s)", "plain Python, wall (s)", "ratio, median"]
    heads += ["`bloomery run`, processor (s)", "plain Python, processor (s)", "ratio, median"]
    heads += ["standing servers, processor (s)", "the same for plain Python"]
    lines = [
        row(server, temperature, rounds) for server, rounds in found.items() for temperature in temperatures(server)
    ]
    print(f"{table(heads, lines)}\n")
    lines = []
    for server, rounds in found.items():
        pairs = [pair for one in rounds for pair in one["re-runs"]]
        again, imports = ([pair[place] for pair in pairs] for place in (0, 1))
        beyond = statistics.median(again) - statistics.median(imports)
        lines.append([server, listed(again, 2), listed(imports, 2), f"{beyond:.2f}"])
    print("A no-change re-run, in processor seconds of all its processes:\n")
    print(f"{table(['server', 'in all', 'imports alone', 'beyond imports, of medians'], lines)}\n")
    server, rounds = next(iter(found.items()))
    key = f"{temperatures(server)[-2]} plain"
    lines = [
        [stage, f"{statistics.median(one[key].stages[stage] for one in rounds):.2f}"] for stage in rounds[0][key].stages
    ]
    print(f"{table(['stage', f'seconds ({key} Python, server {server}, engines started too)'], lines)}\n")
    every = [taken for rounds in found.values() for one in rounds for taken in one.values() if isinstance(taken, Taken)]
    whole = {digests(taken.release) for taken in every}
    same = "the same digests" if len(whole) == 1 else f"{len(whole)} different sets of digests"
    print(f"All {len(every)} releases have {same}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--server", nargs="+", choices=("off", "on", "postgres"), default=["off", "on", "postgres"])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recipe", default="digits")
    which.add_argument("--epochs", type=int, help="run digits with so many epochs")
    told = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = lengthened(told.epochs, folder) if told.epochs else told.recipe
        for server in told.server:
            if server == "postgres" and postgres_program("postgres") is None:
                print("- PostgreSQL is not installed: left out.")
                continue
            try:
                with measured_with(server, recipe, folder / server) as measuring:
                    found[server] = [one_round(measuring, server, number) for number in range(told.rounds)]
            except Failed as failure:
                raise SystemExit(str(failure)) from None
    name = f"digits with {told.epochs} epochs" if told.epochs else told.recipe
    print(f"{name}: {machine(told.rounds)}\n")
    if found:
        tell(found)


if __name__ == "__main__":
    main()
