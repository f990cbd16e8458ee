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
from pathlib import Path

MUST_AGREE = (
    ("prepare", "*.parquet"),
    ("train", "*.safetensors"),
    ("compress", "*.onnx"),
    ("compress", "*.onnx.*"),
)
MAY_DIFFER = (("prepare", "encoder.json"),)


def run_recipe(checkout: Path, recipe: str, state: Path) -> None:
    """Runs the recipe in the checkout; ends the script where the run fails."""
    command = [str(checkout / ".venv" / "bin" / "bloomery"), "run", recipe, "--json"]
    environment = {**os.environ, "BLOOMERY_HOME": str(state)}
    environment.pop("PYTHONPATH", None)
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode not in (0, 4):  # 4: no candidate passed the budget, or the release was refused
        sys.exit(f"{recipe} failed in {checkout}:\n{ended.stdout}{ended.stderr}")


def digests(state: Path, patterns: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """The sha256 of the stages' files that match a pattern, by stage and file name.

    A stage may have several outputs, one for each recipe, whose keys differ between checkouts; their files are told
    apart by the order of their sha256.
    """
    found: dict[str, list[str]] = {}
    for stage, pattern in patterns:
        for path in (state / "stages" / stage).glob(f"*/**/{pattern}"):
            name = f"{stage}/{path.name}"
            found.setdefault(name, []).append(hashlib.sha256(path.read_bytes()).hexdigest())
    return {f"{name}#{i}": sha256 for name, hashes in found.items() for i, sha256 in enumerate(sorted(hashes))}


def compare(old: Path, new: Path, patterns: tuple[tuple[str, str], ...]) -> int:
    """Prints a line for each file, and returns how many differ or are missing on one side."""
    before, after = digests(old, patterns), digests(new, patterns)
    num_different = 0
    for name in sorted(before | after):
        pair = before.get(name, "missing")[:16], after.get(name, "missing")[:16]
        num_different += pair[0] != pair[1]
        print(f"{'equal    ' if pair[0] == pair[1] else 'DIFFERENT'} {name:<40} {pair[0]:<16} {pair[1]:<16}")
    return num_different


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
            num_different += compare(*states, MUST_AGREE)
            num_compared += len(digests(states[0], MUST_AGREE))
            compare(*states, MAY_DIFFER)
    if num_compared == 0:
        sys.exit("nothing was compared: the state folders hold no output of prepare, train or compress")
    print(f"\n{num_compared} files compared, {num_different} different")
    sys.exit(1 if num_different else 0)


if __name__ == "__main__":
    main()
