"""Whether two checkouts make the same bytes of the same recipes: prepared Parquet, weights and ONNX files.

    python benchmarks/compare_checkouts.py OLD NEW [--recipes digits pendigits adult]
    python benchmarks/compare_checkouts.py OLD NEW --states /tmp/old /tmp/new    # folders that runs have left

OLD and NEW are checkouts, each with its own `.venv` (`make .venv/.ready`). The script runs every recipe in each of
them, in a state folder of its own, and compares the sha256 of every file that must not change in a refactoring. It
ends with 1 if one differs or is missing. `encoder.json` is compared, too, and may differ where a key is renamed.

`pendigits` and `adult` read the folder that BLOOMERY_DATA names.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

Patterns = tuple[tuple[str, str], ...]  # of a stage and the names of its files

MUST_AGREE: Patterns = (
    ("prepare", "*.parquet"),
    ("train", "*.safetensors"),
    ("compress", "*.onnx"),
    ("compress", "*.onnx.*"),
)
MAY_DIFFER: Patterns = (("prepare", "encoder.json"),)


def run_recipe(checkout: Path, recipe: str, state: Path) -> None:
    """Runs the recipe in the checkout; ends the script where the run fails."""
    command = [str(checkout / ".venv" / "bin" / "bloomery"), "run", recipe, "--json"]
    environment = {**os.environ, "BLOOMERY_HOME": str(state)}
    environment.pop("PYTHONPATH", None)
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 4):  # 4: no candidate passed the budget, or the release was refused
        sys.exit(f"{recipe} failed in {checkout}:\n{ended.stdout}{ended.stderr}")


def digests(state: Path, patterns: Patterns) -> Counter[tuple[str, str]]:
    """How often each pair of stage and file name, such as `train/weights.safetensors`, and sha256 occurs."""
    return Counter(
        (f"{stage}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest())
        for stage, pattern in patterns
        for path in (state / "stages" / stage).glob(f"*/**/{pattern}")
    )


def compare(old: Path, new: Path, patterns: Patterns) -> tuple[int, int]:
    """Prints a line for each file; returns how many OLD has, and how many on either side have no equal one."""
    before, after = digests(old, patterns), digests(new, patterns)
    lines = [
        *((name, sha256, "equal") for name, sha256 in (before & after).elements()),
        *((name, sha256, "ONLY OLD") for name, sha256 in (before - after).elements()),
        *((name, sha256, "ONLY NEW") for name, sha256 in (after - before).elements()),
    ]
    for name, sha256, where in sorted(lines):
        print(f"{where:<8}  {name:<32}  {sha256[:16]}")
    return before.total(), sum(where != "equal" for _, _, where in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["digits", "pendigits", "adult"])
    parser.add_argument("--states", nargs=2, type=Path, help="compare what runs have left in these, and run nothing")
    arguments = parser.parse_args()
    num_different = num_compared = 0
    for recipe in arguments.recipes if arguments.states is None else ["states"]:
        with tempfile.TemporaryDirectory() as folder:
            states = arguments.states or [Path(folder) / "old", Path(folder) / "new"]
            if arguments.states is None:
                for checkout, state in zip((arguments.old, arguments.new), states, strict=True):
                    run_recipe(checkout.resolve(), recipe, state)
            print(f"\n{recipe}")
            num_files, num_unequal = compare(*states, MUST_AGREE)
            num_compared, num_different = num_compared + num_files, num_different + num_unequal
            compare(*states, MAY_DIFFER)
    if num_compared == 0:
        sys.exit("nothing was compared: the state folders hold no output of prepare, train or compress")
    print(f"\n{num_compared} files compared, {num_different} without an equal one")
    sys.exit(1 if num_different else 0)


if __name__ == "__main__":
    main()
