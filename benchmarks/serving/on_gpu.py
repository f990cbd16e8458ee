"""Compares a recipe's candidates on the processor, on CUDA and with TensorRT: outputs, accuracy and time, in one run.

    python benchmarks/serving/on_gpu.py NAME --prepare FOLDER
    python benchmarks/serving/on_gpu.py --prepared FOLDER [--devices cpu cuda tensorrt] [--rounds 100]

The first command runs the recipe as far as `compress` (finished stages are found again), and copies the file of each
candidate, the baseline with arithmetic in float16, and the encoded test rows to FOLDER, which can be copied to a
machine with a GPU. The second needs onnxruntime-gpu, numpy and pydantic there, and no other engine. It opens each file
on each device as the endpoint does; devices that this machine lacks are named. Times include the copies to the GPU and
back. On each device all files are timed in turns, and ratios are to fp32 on the same device.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np

from bloomery.data_contracts.errors import EngineMissing
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session
from bloomery.models.profiling.latency import ComparedFiles, compare_latency, take_batch

BATCHES = (1, 32, 256)
DEVICES = ("cpu", "cuda", "tensorrt")
_ROWS, _RECORD = "rows.npz", "candidates.json"


def prepare(name: str, folder: Path) -> None:
    """Writes the candidates of the recipe, and its test rows, to `folder`."""
    from bloomery.flows.recipe.recipe import read_recipe
    from bloomery.flows.stages import PLAIN_STAGES
    from bloomery.models.compression.quantization.half_precision import convert_to_half
    from bloomery.models.training.data.batches import read_examples
    from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
    from bloomery.tasks.infrastructure.settings import require_state_folder, settings
    from bloomery.tasks.ingest.stage import locate_source
    from bloomery.tasks.train.initial_weights import locate_initial_weights

    apply_engine_environment()
    require_state_folder()
    recipe = read_recipe(name)
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    valid_rows = PLAIN_STAGES.validate(rows, recipe.contract)
    dataset = PLAIN_STAGES.prepare(valid_rows, recipe.features, recipe.engine_settings)
    weights = locate_initial_weights(recipe.training.start_from)
    trained = PLAIN_STAGES.train(dataset, recipe.model, recipe.training, weights, recipe.engine_settings)
    candidates = PLAIN_STAGES.compress(trained, recipe.compression)
    folder.mkdir(parents=True, exist_ok=True)
    test = read_examples(settings().path(dataset.test.uri), dataset.key, dataset.layout)
    np.savez(folder / _ROWS, x=test.x.numpy(), y=test.y.numpy())
    record = {"baseline": candidates.baseline, "task": dataset.task, "files": {}}
    for candidate in candidates.candidates:
        source = settings().path(candidate.uri)
        shutil.copyfile(source, folder / source.name)
        record["files"][candidate.name] = {"file": source.name, "is_row_by_row": candidate.is_row_by_row}
    # Built here, since a recipe has such a candidate only where a GPU serves.
    baseline = record["files"][candidates.baseline]
    convert_to_half(folder / baseline["file"], folder / "fp16-compute.onnx")
    record["files"]["fp16-compute"] = {**baseline, "file": "fp16-compute.onnx"}
    (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def measure(folder: Path, device: str, rounds: int) -> list[str]:
    """Returns a line of figures for each file on `device`."""
    record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    with np.load(folder / _ROWS) as rows:
        x, y = rows["x"], rows["y"]
    gpu = None if device == "cpu" else device
    files, row_by_row = {}, set()
    for name, candidate in record["files"].items():
        files[name] = folder / candidate["file"]
        if candidate["is_row_by_row"]:
            row_by_row.add(name)
    compared = ComparedFiles(files, record["baseline"], row_by_row, gpu)
    latencies = compare_latency(compared, [take_batch(x, size) for size in BATCHES], rounds=rounds)
    exact = compute_outputs(create_session(files[record["baseline"]]), x, is_row_by_row=False)
    lines = []
    for name, path in files.items():
        outputs = compute_outputs(create_session(path, device=gpu), x, is_row_by_row=name in row_by_row)
        cells = [name, device, f"{path.stat().st_size / 1e6:.2f} MB", f"{np.abs(outputs - exact).max():.1e}"]
        is_class = record["task"] == "classification"
        cells.append(f"{(outputs.argmax(1) == y).mean():.4f}" if is_class else "-")
        cells += [f"{latency.p50_ms:.3f} ms ({1 / latency.ratio.value:.2f}x)" for latency in latencies[name]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", help="a recipe, with --prepare")
    parser.add_argument("--prepare", type=Path, metavar="FOLDER")
    parser.add_argument("--prepared", type=Path, metavar="FOLDER")
    parser.add_argument("--devices", nargs="+", choices=DEVICES, default=list(DEVICES))
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    if options.prepare is not None:
        if options.name is None:
            parser.error("--prepare needs the name of a recipe")
        prepare(options.name, options.prepare)
        return
    if options.prepared is None:
        parser.error("state --prepare FOLDER, or --prepared FOLDER")
    times = " | ".join(f"p50 of {size} rows (faster than fp32)" for size in BATCHES)
    print(f"| file | device | size | largest difference from fp32 on the processor | accuracy | {times} |")
    print("| --- " * (5 + len(BATCHES)) + "|")
    for device in options.devices:
        try:
            print(*measure(options.prepared, device, options.rounds), sep="\n", flush=True)
        except EngineMissing as error:
            print(f"not measured on {device}: {error.found}")


if __name__ == "__main__":
    main()
