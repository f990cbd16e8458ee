"""Compares a run that is killed repeatedly during training with an uninterrupted one.

    BLOOMERY_DATA=… python benchmarks/orchestration/kill_and_resume.py [--kills 3] [--epochs 3] [--every-steps 20]
        [recipe …]

`bloomery run` gets SIGKILL after each new checkpoint, `--kills` times, and is restarted each time. Then it compares the
digests of both runs stage by stage: rows, encoded splits, weights, every ONNX file, bento. It prints a Markdown table,
and ends with exit code 1 if any digest differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from resource_usage import ROOT, environment

RECIPES = ("pendigits", "beijing-pm25", "clinc150", "adult")  # GRU, LSTM, Transformer, MLP
TIMEOUT_S = 1200
DATA = {"BLOOMERY_DATA": os.environ.get("BLOOMERY_DATA", "")}


def write_short_recipe(name: str, folder: Path, epochs: int, every_steps: int) -> Path:
    """Writes the recipe with a short training and without budget and gates. Returns its path."""
    recipe = yaml.safe_load((ROOT / "deployments" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe["contract"] = str(ROOT / "data_contracts" / "contracts" / recipe["contract"])
    recipe["training"] |= {"epochs": epochs, "checkpoints": {"every_steps": every_steps}}
    recipe["compression"] = {"candidates": [{"name": "fp32"}], "latency_rounds": 20}
    recipe["budget"], recipe["gates"] = {}, {}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def start_run(recipe: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bloomery.flows.cli", "run", str(recipe), "--json"]
    pipe = subprocess.PIPE
    # Standard error goes to a file, since nothing would read a pipe of a killed run.
    with (home.parent / f"{home.name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(home) | DATA, stdout=pipe, stderr=log, text=True)


def kill_repeatedly(recipe: Path, home: Path, kills: int) -> list[int]:
    """Kills the run after each new checkpoint. Returns the steps at which it was killed."""
    known_checkpoints: set[str] = set()
    steps: list[int] = []
    for _ in range(kills):
        run, deadline = start_run(recipe, home), time.monotonic() + TIMEOUT_S
        checkpoints: set[str] = set()
        while not checkpoints and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
            checkpoints = {path.name for path in home.glob("checkpoints/*/step-*")} - known_checkpoints
        run.send_signal(signal.SIGKILL)
        if run.wait() != -signal.SIGKILL:
            raise SystemExit(
                f"the run in {home} ended before it was killed: increase --epochs, or reduce --every-steps"
            )
        known_checkpoints |= checkpoints
        steps.append(max(int(name.removeprefix("step-")) for name in checkpoints))
    return steps


def complete_run(recipe: Path, home: Path) -> dict[str, Any]:
    """Runs the recipe to its end, and returns the digests of its stages."""
    run = start_run(recipe, home)
    output, _ = run.communicate()
    if run.returncode != 0:
        raise SystemExit(f"the run ended with exit code {run.returncode}: see {home.parent / home.name}.log\n{output}")
    return collect_digests(json.loads(output))


def collect_digests(release: dict[str, Any]) -> dict[str, Any]:
    candidates = release["bento"]["choice"]["candidates"]
    dataset = candidates["trained"]["dataset"]
    return {
        "rows": dataset["valid_rows"]["raw_rows"]["digest"],
        "dataset": dataset["digest"],
        "weights": candidates["trained"]["digest"],
        "onnx": [candidate["sha256"] for candidate in candidates["candidates"]],
        "bento": release["bento"]["digest"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, help="how often the run is killed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--every-steps", type=int, default=20, help="optimizer steps between checkpoints")
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    print("| recipe | network | killed after steps | weights | differences |\n| --- | --- | --- | --- | --- |")
    all_equal = True
    for name in options.recipes:
        with tempfile.TemporaryDirectory() as folder:
            recipe = write_short_recipe(name, Path(folder), options.epochs, options.every_steps)
            steps = kill_repeatedly(recipe, Path(folder) / "killed", options.kills)
            interrupted = complete_run(recipe, Path(folder) / "killed")
            uninterrupted = complete_run(recipe, Path(folder) / "uninterrupted")
            model = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]
        differences = [output for output, digest in uninterrupted.items() if digest != interrupted[output]]
        all_equal &= not differences
        network = " ".join(model[key] for key in ("kind", "cell") if key in model)
        cells = [name, network, ", ".join(map(str, steps)), f"`{uninterrupted['weights'][:12]}`"]
        print(f"| {' | '.join(cells)} | {', '.join(differences) or 'none'} |", flush=True)
    raise SystemExit(0 if all_equal else 1)


if __name__ == "__main__":
    main()
