"""What orchestration costs: `bloomery run digits` against the same stage functions in plain Python, in turns.

    python benchmarks/orchestration/overhead.py --rounds 3

Each round runs both from the start of the process to its end:

- cold: an empty state folder, so Prefect's and MLflow's databases are made too (plain Python makes MLflow's alone);
- warm: a state folder with both databases, without any stage output;
- again: nothing changed, every stage found.

It prints seconds and ratios as a Markdown table, the seconds of each stage, and whether all runs gave the same digests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

PLAIN = """
import json, sys
from flows.pipeline import PLAIN, locate
from flows.order import in_order
from flows.recipe import read_recipe
from tasks import events, spark
stages = {}
events.watch(lambda event: stages.update({event.name: event.seconds}) if isinstance(event, events.StageEnded) else None)
recipe = read_recipe("digits")
release = in_order(PLAIN, recipe, locate(recipe.data))
spark.stop()
print("RESULT", json.dumps({"release": json.loads(release.model_dump_json(by_alias=True)), "stages": stages}))
"""


def environment(home: Path) -> dict[str, str]:
    foreign = ("PREFECT_", "MLFLOW_", "BENTOML_", "BLOOMERY_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "BLOOMERY_HOME": str(home)
    }


def timed(command: list[str], home: Path) -> tuple[float, str]:
    """Wall-clock seconds of a whole process, and what it printed."""
    start = time.perf_counter()
    ended = subprocess.run(command, cwd=ROOT, env=environment(home), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if ended.returncode != 0:
        raise SystemExit(f"{' '.join(command)[:80]} ended with {ended.returncode}\n{ended.stdout}\n{ended.stderr}")
    return seconds, ended.stdout


def orchestrated(home: Path) -> tuple[float, dict[str, Any]]:
    seconds, printed = timed([sys.executable, "-m", "flows.cli", "run", "digits", "--json"], home)
    return seconds, json.loads(printed)


def plain(home: Path) -> tuple[float, dict[str, Any], dict[str, float]]:
    # From a file: pyspark takes a main module without one for its own doctests, and exits.
    script = home.with_suffix(".py")
    script.write_text(PLAIN, encoding="utf-8")
    seconds, printed = timed([sys.executable, str(script)], home)
    result = json.loads(printed.rpartition("RESULT")[2])
    return seconds, result["release"], result["stages"]


def without_outputs(home: Path) -> None:
    """Leave the databases, remove every stage output and bento: the next run computes all."""
    for folder in ("stages", "bentoml"):
        shutil.rmtree(home / folder)


def digests(release: dict[str, Any]) -> str:
    chosen = release["bento"]["chosen"]
    trained = chosen["options"]["trained"]
    parts = [trained["dataset"][part]["sha256"] for part in ("train", "val", "test")]
    onnx = [candidate["sha256"] for candidate in chosen["options"]["candidates"]]
    return json.dumps([parts, trained["digest"], onnx, release["bento"]["digest"]])


def one_round(folder: Path, number: int) -> dict[str, Any]:
    """Both forms, cold, warm and again; which of them goes first changes from round to round."""
    ours, theirs = folder / f"prefect-{number}", folder / f"plain-{number}"
    result: dict[str, Any] = {"digests": set()}
    for temperature in ("cold", "warm", "again"):
        for form in ("prefect", "plain") if number % 2 else ("plain", "prefect"):
            home = ours if form == "prefect" else theirs
            if temperature == "warm":
                without_outputs(home)
            if form == "prefect":
                seconds, release = orchestrated(home)
            else:
                seconds, release, stages = plain(home)
                if temperature == "warm":
                    result["stages"] = stages
            result[f"{temperature} {form}"] = seconds
            result["digests"].add(digests(release))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    rounds_wanted = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        rounds = [one_round(Path(folder), number) for number in range(rounds_wanted)]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {rounds_wanted} rounds\n")
    print("| run | `bloomery run` (s) | plain Python (s) | ratio, median of rounds |\n| --- | ---: | ---: | ---: |")
    for temperature in ("cold", "warm", "again"):
        ours = [one[f"{temperature} prefect"] for one in rounds]
        theirs = [one[f"{temperature} plain"] for one in rounds]
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        shown = " / ".join(f"{seconds:.1f}" for seconds in ours), " / ".join(f"{seconds:.1f}" for seconds in theirs)
        print(f"| {temperature} | {shown[0]} | {shown[1]} | {ratio:.2f} |")
    again = statistics.median(one["again prefect"] / one["cold prefect"] for one in rounds)
    print(f"\nA second run takes {again:.1%} of the first (median).\n")
    print("| stage | seconds (plain Python, warm, engines' start included) |\n| --- | ---: |")
    for stage in rounds[0]["stages"]:
        print(f"| {stage} | {statistics.median(one['stages'][stage] for one in rounds):.2f} |")
    whole = set.union(*(one["digests"] for one in rounds))
    same = "the same digests" if len(whole) == 1 else f"{len(whole)} different sets of digests"
    print(f"\nAll {2 * 3 * rounds_wanted} releases have {same}.")


if __name__ == "__main__":
    main()
