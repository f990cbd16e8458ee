"""Measures how the latency of a file depends on what ran before it.

    python benchmarks/compression/company.py [--rounds 300]

A wide network in fp32 and a student of it in 8 bits, both with random weights, run one row in turns: alone with each
other, and beside four more files. Each is timed right after another file; right after itself, as `compare_latency`
does; and as in an endpoint, which has one file and parses a JSON request before each prediction. Prints the speed-up of
the student and its median time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from first_layer import GREY, written
from wanted import strided

from bloomery.models.inference.runtime import create_session
from bloomery.models.networks.config import Cnn
from bloomery.models.profiling.latency import measure_in_turns, median_ratio, run_batch
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder

WIDE = Cnn(kind="cnn", channels=(64, 128, 256), hidden=256)
REQUEST = json.dumps({"rows": [{"image": list(range(784))}]})


def six(folder: Path) -> dict[str, Path]:
    """The two files, and four more."""
    students = {"student": ([32, 64, 64], 64), "narrow": ([16, 32, 32], 64), "wide": ([64, 128, 128], 64)}
    configs = {"whole": WIDE} | {name: Cnn.model_validate(strided(*shape)) for name, shape in students.items()}
    of = {}
    for name, config in configs.items():
        (folder / name).mkdir()
        of[name] = written(config, GREY, folder / name)
    in_8_bits = {name: of[name]["first-in-float"] for name in students}
    return {"fp32": of["whole"]["fp32"], "int8": of["whole"]["int8"], "student-fp32": of["student"]["fp32"]} | in_8_bits


def read_request() -> np.ndarray:
    (row,) = json.loads(REQUEST)["rows"]
    return np.asarray(row["image"], np.float32).reshape(1, *GREY) / 255


def timed(files: dict[str, Path], rounds: int, num_before: int, read: Callable[[], np.ndarray]) -> str:
    sessions = {name: create_session(path) for name, path in files.items()}

    def turn(name: str) -> float:
        for _ in range(num_before):
            run_batch(sessions[name], read(), is_row_by_row=False)
        x = read()
        start = time.perf_counter()
        run_batch(sessions[name], x, is_row_by_row=False)
        return time.perf_counter() - start

    seconds = measure_in_turns(list(files), turn, rounds, seed=0, max_seconds=60)
    ratio = 1 / median_ratio(seconds["student"], seconds["fp32"])
    return f"{ratio:.1f}x, {1e3 * np.median(seconds['student']):.3f} ms"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=300)
    asked.add_argument("--repeats", type=int, default=3)
    chosen = asked.parse_args()
    apply_engine_environment()
    require_state_folder()
    x = read_request()
    ways: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
        "right after another file": (0, lambda: x),
        "right after itself": (1, lambda: x),
        "as an endpoint asks": (2, read_request),
    }
    print("| timed | two files | six files |")
    print("| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        all_six = six(Path(folder))
        two = {name: all_six[name] for name in ("fp32", "student")}
        for _ in range(chosen.repeats):
            for way, (num_before, read) in ways.items():
                told = [timed(files, chosen.rounds, num_before, read) for files in (two, all_six)]
                print(f"| {way} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
