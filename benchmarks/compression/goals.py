"""Measures the recipes' compressed networks: size, latency and loss of accuracy on the official test splits.

    BLOOMERY_DATA=… python benchmarks/compression/goals.py [--seeds 0] [recipe …]

For each recipe the network is trained as configured (a finished training is reused) and the compress stage builds the
candidates of `wanted.py`; ONNX Runtime's `quantize_dynamic` and `quantize_static` with default settings quantize the
same float file. All files run in turns in one process, on one thread. Ratios are to the trained network in fp32; the
drop is on the official test split, with the upper end of its 95% interval.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from wanted import CANDIDATES

from bloomery.data_contracts.records.records import Candidate, Candidates, TrainedNetwork
from bloomery.flows.pipeline import PLAIN_STAGES
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.models.compression.config import Compression
from bloomery.models.evaluation import metrics
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session
from bloomery.models.profiling import latency
from bloomery.models.training.data.batches import even_sample, read_examples
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.ingest.stage import locate_source


def trained_as(recipe: Recipe, seed: int) -> TrainedNetwork:
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    training = recipe.training.model_copy(update={"seed": seed})
    return PLAIN_STAGES.train(dataset, recipe.model, training, None)


def row(name: str, size: float, times: list[float], score: float, worse: Any) -> str:
    told = " | ".join(f"{time:.2f} ({1 / time:.1f}x)" for time in times)
    loss = f"{worse.value:+.4f}, up to {worse.high:+.4f}"
    return f"| {name} | {size:.3f} ({1 / size:.1f}x) | {told} | {score:.4f} | {loss} |"


def of_candidates(options: Candidates) -> list[str]:
    fp32 = options.candidates[0]

    def told(one: Candidate) -> str:
        times = [latency.ratio.value for latency in one.latencies]
        return row(one.name, one.size_bytes / fp32.size_bytes, times, one.score.value, one.degradation)

    return [told(one) for one in options.candidates]


def of_defaults(options: Candidates) -> list[str]:
    """ONNX Runtime's quantization with default settings, of the candidates' float file."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    dataset, fp32 = options.trained.dataset, options.candidates[0]
    train, test = (
        read_examples(settings().path(part.uri), dataset.key, dataset.layout) for part in (dataset.train, dataset.test)
    )
    x = test.x.numpy()

    class Rows(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._rows = iter(even_sample(train.x, 500)[:500].numpy())

        def get_next(self) -> dict[str, np.ndarray] | None:
            one = next(self._rows, None)
            return None if one is None else {"x": one[None]}

    lines = []
    with tempfile.TemporaryDirectory() as folder:
        files = {"fp32": settings().path(fp32.uri)}
        ready = Path(folder) / "ready.onnx"
        quant_pre_process(str(files["fp32"]), str(ready), skip_symbolic_shape=True)
        for name in ("dynamic", "static"):
            path = Path(folder) / f"{name}.onnx"
            try:
                if name == "dynamic":
                    quantize_dynamic(str(ready), str(path))
                else:
                    quantize_static(str(ready), str(path), Rows())
                files[name] = path
            except Exception as failure:
                lines.append(f"| ONNX Runtime's {name} | fails: {str(failure).splitlines()[0][:80]} | | | | |")
        timed = latency.compare_latency(
            latency.ComparedFiles(files, "fp32"), [x[:size] for size in (1, 32)], rounds=300
        )
        exact = compute_outputs(create_session(files["fp32"]), x, is_row_by_row=False)
        for name in [one for one in files if one != "fp32"]:
            given = compute_outputs(create_session(files[name]), x, is_row_by_row=name == "dynamic")
            if dataset.task == "classification":
                right = [outputs.argmax(1) == test.y.numpy() for outputs in (exact, given)]
                score, worse = float(right[1].mean()), metrics.accuracy_drop(*right)
            else:
                figures = [outputs[:, 0] for outputs in (exact, given)]
                score = float(metrics.rmse(test.y.numpy(), figures[1]).value)  # in standard units
                worse = metrics.rmse_rise(test.y.numpy(), *figures)
            size = files[name].stat().st_size / fp32.size_bytes
            times = [of_batch.ratio.value for of_batch in timed[name]]
            lines.append(row(f"ONNX Runtime's {name}", size, times, score, worse))
    return lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0])
    asked.add_argument("recipes", nargs="*", default=list(CANDIDATES))
    chosen = asked.parse_args()
    apply_engine_environment()
    require_state_folder()
    for name in chosen.recipes:
        recipe = read_recipe(name)
        for seed in chosen.seeds:
            options = PLAIN_STAGES.compress(trained_as(recipe, seed), Compression.model_validate(CANDIDATES[name]))
            print(f"\n### `{name}`, seed {seed}\n")
            print("| candidate | size | time, 1 row | 32 rows | score | worse |")
            print("| --- | ---: | ---: | ---: | ---: | ---: |")
            print("\n".join((*of_candidates(options), *of_defaults(options))), flush=True)


if __name__ == "__main__":
    main()
