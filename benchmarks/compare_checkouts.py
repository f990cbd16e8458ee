"""Compares the files that two checkouts write for the same recipes: prepared Parquet, weights and ONNX files.

    python benchmarks/compare_checkouts.py OLD NEW [--recipes digits pendigits adult]
    python benchmarks/compare_checkouts.py OLD NEW --states /tmp/old /tmp/new    # compares existing state folders

OLD and NEW are checkouts, each with its own `.venv` (`make .venv/.ready`). The script runs every recipe in each of
them, in a state folder of its own, and compares the sha256 of every file that a refactoring must not change. It ends
with exit code 1 if a file differs or is missing. `encoder.json` is listed too, and may differ where a key is renamed.

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

Patterns = tuple[tuple[str, str], ...]  # pairs of a stage and the names of its files

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
    process = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if process.returncode not in (0, 4):  # 4: no candidate passed the budget, or the release was refused
        sys.exit(f"{recipe} failed in {checkout}:\n{process.stdout}{process.stderr}")


def count_digests(state: Path, patterns: Patterns) -> Counter[tuple[str, str]]:
    """How often each pair of stage and file name, such as `train/weights.safetensors`, and sha256 occurs."""
    return Counter(
        (f"{stage}/{path.name}", hashlib.sha256(path.read_bytes()).hexdigest())
        for stage, pattern in patterns
        for path in (state / "stages" / stage).glob(f"*/**/{pattern}")
    )


def compare(old: Path, new: Path, patterns: Patterns) -> tuple[int, int]:
    """Prints a line for each file; returns the numbers of files of OLD, and of files without an equal one."""
    before, after = count_digests(old, patterns), count_digests(new, patterns)
    lines = [
        *((name, sha256, "equal") for name, sha256 in (before & after).elements()),
        *((name, sha256, "ONLY OLD") for name, sha256 in (before - after).elements()),
        *((name, sha256, "ONLY NEW") for name, sha256 in (after - before).elements()),
    ]
    for name, sha256, status in sorted(lines):
        print(f"{status:<8}  {name:<32}  {sha256[:16]}")
    return before.total(), sum(status != "equal" for _, _, status in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["digits", "pendigits", "adult"])
    parser.add_argument(
        "--states",
        nargs=2,
        type=Path,
        metavar=("OLD_STATE", "NEW_STATE"),
        help="compare these state folders, and run nothing",
    )
    options = parser.parse_args()
    num_different = num_compared = 0
    for recipe in options.recipes if options.states is None else ["states"]:
        with tempfile.TemporaryDirectory() as folder:
            old_state, new_state = options.states or [Path(folder) / "old", Path(folder) / "new"]
            if options.states is None:
                for checkout, state in zip((options.old, options.new), (old_state, new_state), strict=True):
                    run_recipe(checkout.resolve(), recipe, state)
            print(f"\n{recipe}")
            num_files, num_unequal = compare(old_state, new_state, MUST_AGREE)
            num_compared, num_different = num_compared + num_files, num_different + num_unequal
            compare(old_state, new_state, MAY_DIFFER)
    if num_compared == 0:
        sys.exit("nothing was compared: the state folders have no output of prepare, train or compress")
    print(f"\n{num_compared} files compared, {num_different} without an equal file")
    sys.exit(1 if num_different else 0)


if __name__ == "__main__":
    main()
