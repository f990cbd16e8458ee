"""Compares a run that is killed repeatedly during training with an undisturbed one.

    BLOOMERY_DATA=… python benchmarks/orchestration/killed.py [--kills 3] [--epochs 3] [--every-steps 20] [recipe …]

`bloomery run` gets SIGKILL after each new checkpoint, `--kills` times, and is restarted each time. Then the digests of
both runs are compared stage by stage: rows, encoded splits, weights, every ONNX file, bento. It prints a Markdown
table, and ends with 1 if any digest differs.
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

sys.path.insert(0, str(Path(__file__).resolve().parent))

from spent import ROOT, environment

RECIPES = ("pendigits", "beijing-pm25", "clinc150", "adult")  # GRU, LSTM, Transformer, MLP
PATIENCE_S = 1200
DATA = {"BLOOMERY_DATA": os.environ.get("BLOOMERY_DATA", "")}


def shortened(name: str, folder: Path, epochs: int, every_steps: int) -> Path:
    """Returns the recipe with a short training and loose gates."""
    recipe = yaml.safe_load((ROOT / "deployments" / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe["contract"] = str(ROOT / "data_contracts" / "contracts" / recipe["contract"])
    recipe["training"] |= {"epochs": epochs, "checkpoints": {"every_steps": every_steps}}
    recipe["compression"] = {"candidates": [{"name": "fp32"}], "latency_rounds": 20}
    recipe["budget"], recipe["gates"] = {}, {}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def started(recipe: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bloomery.flows.cli", "run", str(recipe), "--json"]
    pipe = subprocess.PIPE
    # SIGKILL leaves nobody to read what it wrote, so its notes go to a file.
    with (home.parent / f"{home.name}.log").open("a", encoding="utf-8") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment(home) | DATA, stdout=pipe, stderr=log, text=True)


def killed(recipe: Path, home: Path, kills: int) -> list[int]:
    """Kills the run after each new checkpoint. Returns the steps at which it was killed."""
    seen: set[str] = set()
    steps: list[int] = []
    for _ in range(kills):
        run, deadline = started(recipe, home), time.monotonic() + PATIENCE_S
        kept: set[str] = set()
        while not kept and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
            kept = {place.name for place in home.glob("checkpoints/*/step-*")} - seen
        run.send_signal(signal.SIGKILL)
        if run.wait() != -signal.SIGKILL:
            raise SystemExit(
                f"the run ended before it was killed: train longer, or keep checkpoints more often ({home})"
            )
        seen |= kept
        steps.append(max(int(name.removeprefix("step-")) for name in kept))
    return steps


def ended(recipe: Path, home: Path) -> dict[str, Any]:
    run = started(recipe, home)
    printed, _ = run.communicate()
    if run.returncode != 0:
        raise SystemExit(f"ended with {run.returncode}: see {home.parent / home.name}.log\n{printed}")
    return digests(json.loads(printed))


def digests(release: dict[str, Any]) -> dict[str, Any]:
    options = release["bento"]["choice"]["candidates"]
    dataset = options["trained"]["dataset"]
    return {
        "rows": dataset["valid_rows"]["raw_rows"]["digest"],
        "dataset": dataset["digest"],
        "weights": options["trained"]["digest"],
        "onnx": [candidate["sha256"] for candidate in options["candidates"]],
        "bento": release["bento"]["digest"],
    }


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--kills", type=int, default=3)
    asked.add_argument("--epochs", type=int, default=3)
    asked.add_argument("--every-steps", type=int, default=20)
    asked.add_argument("recipes", nargs="*", default=RECIPES)
    chosen = asked.parse_args()
    print("| recipe | network | killed after steps | weights | what differs |\n| --- | --- | --- | --- | --- |")
    all_equal = True
    for name in chosen.recipes:
        with tempfile.TemporaryDirectory() as folder:
            recipe = shortened(name, Path(folder), chosen.epochs, chosen.every_steps)
            steps = killed(recipe, Path(folder) / "killed", chosen.kills)
            disturbed = ended(recipe, Path(folder) / "killed")
            undisturbed = ended(recipe, Path(folder) / "undisturbed")
            model = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"]
        differing = [one for one, digest in undisturbed.items() if digest != disturbed[one]]
        all_equal &= not differing
        network = " ".join(model[one] for one in ("kind", "cell") if one in model)
        told = f"{', '.join(map(str, steps))} | `{undisturbed['weights'][:12]}` | {', '.join(differing) or 'nothing'}"
        print(f"| {name} | {network} | {told} |", flush=True)
    raise SystemExit(0 if all_equal else 1)


if __name__ == "__main__":
    main()
