"""Measures the recipes' compressed networks: size, latency and drop of the score on the official test splits.

    BLOOMERY_DATA=… python benchmarks/compression/goals.py [--seeds 0] [recipe …]

For each recipe the network is trained as configured (a finished training is reused) and the compress stage builds the
candidates of `candidates.py`. ONNX Runtime's `quantize_dynamic` and `quantize_static` with default settings quantize
the same float file. All files run in turns in one process, on one thread. Ratios are to the trained network in fp32;
the drop is on the official test split, with the upper end of its 95% interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from candidates import CANDIDATES

from bloomery.data_contracts.records.records import Candidate, Candidates, TrainedNetwork
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.flows.stages import PLAIN_STAGES
from bloomery.models.compression.config import Compression
from bloomery.models.evaluation import metrics
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session
from bloomery.models.profiling import latency
from bloomery.models.training.data.batches import even_sample, read_examples
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.ingest.stage import locate_source


def train_network(recipe: Recipe, seed: int) -> TrainedNetwork:
    """Runs the stages `ingest` to `train`."""
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    training = recipe.training.model_copy(update={"seed": seed})
    return PLAIN_STAGES.train(dataset, recipe.model, training, None, recipe.engine_settings)


def format_row(name: str, size: float, latencies: list[float], score: float, drop: Any) -> str:
    """Formats a table row. Size and latencies are relative to fp32."""
    speed_ups = " | ".join(f"{latency:.2f} ({1 / latency:.1f}x)" for latency in latencies)
    interval = f"{drop.value:+.4f}, up to {drop.high:+.4f}"
    return f"| {name} | {size:.3f} ({1 / size:.1f}x) | {speed_ups} | {score:.4f} | {interval} |"


def format_candidates(candidates: Candidates) -> list[str]:
    fp32 = candidates.candidates[0]

    def format_candidate(candidate: Candidate) -> str:
        latencies = [latency.ratio.value for latency in candidate.latencies]
        size = candidate.size_bytes / fp32.size_bytes
        return format_row(candidate.name, size, latencies, candidate.score.value, candidate.degradation)

    return [format_candidate(candidate) for candidate in candidates.candidates]


def measure_defaults(candidates: Candidates) -> list[str]:
    """Quantizes the float candidate by ONNX Runtime with default settings. Returns a table row for each mode."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    dataset, fp32 = candidates.trained.dataset, candidates.candidates[0]
    train, test = (
        read_examples(settings().path(part.uri), dataset.key, dataset.layout) for part in (dataset.train, dataset.test)
    )
    x = test.x.numpy()

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(even_sample(train.x, 500)[:500].numpy())

        def get_next(self) -> dict[str, np.ndarray] | None:
            row = next(self._rows, None)
            return None if row is None else {"x": row[None]}

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"fp32": settings().path(fp32.uri)}
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(files["fp32"]), str(prepared), skip_symbolic_shape=True)
        for name in ("dynamic", "static"):
            path = Path(folder) / f"{name}.onnx"
            try:
                if name == "dynamic":
                    quantize_dynamic(str(prepared), str(path))
                else:
                    quantize_static(str(prepared), str(path), Rows())
                files[name] = path
            except Exception as error:
                lines.append(f"| ONNX Runtime's {name} | fails: {str(error).splitlines()[0][:80]} | | | | |")
        batches = [x[:size] for size in (1, 32)]
        latencies = latency.compare_latency(latency.ComparedFiles(files, "fp32"), batches, rounds=300)
        float_outputs = compute_outputs(create_session(files["fp32"]), x, is_row_by_row=False)
        for name in [name for name in files if name != "fp32"]:
            outputs = compute_outputs(create_session(files[name]), x, is_row_by_row=name == "dynamic")
            if dataset.task == "classification":
                float_correct, correct = (logits.argmax(1) == test.y.numpy() for logits in (float_outputs, outputs))
                score, drop = float(correct.mean()), metrics.accuracy_drop(float_correct, correct)
            else:
                score = float(metrics.rmse(test.y.numpy(), outputs[:, 0]).value)  # in standard units
                drop = metrics.rmse_rise(test.y.numpy(), float_outputs[:, 0], outputs[:, 0])
            size = files[name].stat().st_size / fp32.size_bytes
            ratios = [batch.ratio.value for batch in latencies[name]]
            lines.append(format_row(f"ONNX Runtime's {name}", size, ratios, score, drop))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("recipes", nargs="*", default=list(CANDIDATES))
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    for name in options.recipes:
        recipe = read_recipe(name)
        for seed in options.seeds:
            candidates = PLAIN_STAGES.compress(
                train_network(recipe, seed), Compression.model_validate(CANDIDATES[name])
            )
            print(f"\n### `{name}`, seed {seed}\n")
            print("| candidate | size | latency, 1 row | 32 rows | score | drop |")
            print("| --- | ---: | ---: | ---: | ---: | ---: |")
            print("\n".join((*format_candidates(candidates), *measure_defaults(candidates))), flush=True)


if __name__ == "__main__":
    main()
