"""Measures how the latency of an ONNX file depends on what ran before it, and so on the contents of the caches.

    python benchmarks/compression/cache_effects.py [--rounds 300]

A wide network in fp32 and its student in 8 bits, both with random weights, predict one row in turns: only these two
files, and together with four more. Each prediction is timed right after another file's; right after the same file's, as
`compare_latency` does; and as in an endpoint, which has one file and parses a JSON request before each prediction. The
script prints the speed-up of the student, and its median time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from candidates import strided_cnn
from first_layer import GREY, write_files

from bloomery.models.inference.runtime import create_session
from bloomery.models.networks.config import Cnn
from bloomery.models.profiling.latency import measure_in_turns, median_ratio, run_batch
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder

WIDE = Cnn(kind="cnn", channels=(64, 128, 256), hidden=256)
REQUEST = json.dumps({"rows": [{"image": list(range(784))}]})


def write_six_files(folder: Path) -> dict[str, Path]:
    """Writes the wide network in fp32, its student in 8 bits (`student`), and four more files."""
    students = {"student": ([32, 64, 64], 64), "narrow": ([16, 32, 32], 64), "wide": ([64, 128, 128], 64)}
    configs = {"teacher": WIDE} | {name: Cnn.model_validate(strided_cnn(*shape)) for name, shape in students.items()}
    files = {}
    for name, config in configs.items():
        (folder / name).mkdir()
        files[name] = write_files(config, GREY, folder / name)
    quantized = {name: files[name]["first-in-float"] for name in students}
    teacher = files["teacher"]
    return {"fp32": teacher["fp32"], "int8": teacher["int8"], "student-fp32": files["student"]["fp32"]} | quantized


def parse_request() -> np.ndarray:
    (row,) = json.loads(REQUEST)["rows"]
    return np.asarray(row["image"], np.float32).reshape(1, *GREY) / 255


def measure_student(files: dict[str, Path], rounds: int, num_before: int, get_row: Callable[[], np.ndarray]) -> str:
    """Formats the student's speed-up and median time. Each measurement follows `num_before` predictions of the file."""
    sessions = {name: create_session(path) for name, path in files.items()}

    def time_prediction(name: str) -> float:
        for _ in range(num_before):
            run_batch(sessions[name], get_row(), is_row_by_row=False)
        x = get_row()
        start = time.perf_counter()
        run_batch(sessions[name], x, is_row_by_row=False)
        return time.perf_counter() - start

    seconds = measure_in_turns(list(files), time_prediction, rounds, seed=0, max_seconds=60)
    ratio = 1 / median_ratio(seconds["student"], seconds["fp32"])
    return f"{ratio:.1f}x, {1e3 * np.median(seconds['student']):.3f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    x = parse_request()
    conditions: dict[str, tuple[int, Callable[[], np.ndarray]]] = {
        "right after another file": (0, lambda: x),
        "right after itself": (1, lambda: x),
        "after a JSON request, as in an endpoint": (2, parse_request),
    }
    print("| timed | two files | six files |")
    print("| --- | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        six_files = write_six_files(Path(folder))
        two_files = {name: six_files[name] for name in ("fp32", "student")}
        for _ in range(options.repeats):
            for name, (num_before, get_row) in conditions.items():
                cells = [
                    measure_student(files, options.rounds, num_before, get_row) for files in (two_files, six_files)
                ]
                print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
