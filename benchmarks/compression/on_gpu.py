"""Trains and compresses a recipe's network on a GPU with several seeds, and evaluates it on the official test split.

    BLOOMERY_DATA=… python benchmarks/compression/on_gpu.py NAME --prepare FOLDER
    python benchmarks/compression/on_gpu.py NAME --prepared FOLDER [--seeds 0 1 2] [--rounds 100] [--device cuda]

The first command prepares the rows as the pipeline does and writes them to FOLDER, which can be copied to a machine
with a GPU. The second needs torch, ONNX Runtime, pyarrow and pydantic there, and neither Spark nor Prefect: it trains
as the recipe says and builds the candidates of `wanted.py` with the functions of the stages. Latencies are those of
that machine's CPU, one thread, in turns; drops are on the test split, with the upper end of the 95% interval.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from wanted import CANDIDATES

from bloomery.data_contracts.records.records import Dataset, EncodedSplit, TrainedNetwork
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.models.compression.config import Compression
from bloomery.models.evaluation import metrics
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session
from bloomery.models.networks.blueprint import num_parameters, write_network
from bloomery.models.profiling import latency
from bloomery.models.training.data.batches import Examples, read_examples
from bloomery.models.training.loop import evaluate
from bloomery.tasks.compress.candidate_builder import CandidateBuilder, CandidateSplits, build_candidates
from bloomery.tasks.compress.candidate_measurement import BuiltCandidate
from bloomery.tasks.infrastructure.device import configure_processor
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.train import fit

BATCHES = (1, 32)
RECORD = "dataset.json"


def prepare(name: str, folder: Path) -> None:
    from bloomery.flows.pipeline import PLAIN_STAGES
    from bloomery.tasks.ingest.stage import locate_source

    recipe = read_recipe(name)
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset: Dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    folder.mkdir(parents=True, exist_ok=True)

    def taken(part: EncodedSplit) -> EncodedSplit:
        source = settings().path(part.uri)
        pq.write_table(pq.read_table(source), folder / source.name, compression="zstd", compression_level=15)
        return part.model_copy(update={"uri": source.name})

    parts = {key: taken(getattr(dataset, key)) for key in ("train", "val", "test")}
    (folder / RECORD).write_text(dataset.model_copy(update=parts).model_dump_json(), encoding="utf-8")


def read_dataset(folder: Path) -> Dataset:
    return Dataset.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))


def read_splits(dataset: Dataset, folder: Path) -> CandidateSplits:
    read = (
        read_examples(folder / part.uri, dataset.key, dataset.layout)
        for part in (dataset.train, dataset.val, dataset.test)
    )
    return CandidateSplits(*read)


def made(
    recipe: Recipe, dataset: Dataset, parts: CandidateSplits, seed: int, device: str, folder: Path
) -> list[BuiltCandidate]:
    training = recipe.training.model_copy(update={"seed": seed, "device": device})
    compression = Compression.model_validate({**CANDIDATES[recipe.name], "device": device})
    blueprint = fit.make_blueprint(dataset, recipe.model)
    configure_processor(training)
    began = time.perf_counter()
    fitted = fit.fit_network(fit.TrainingSplits(parts.train, parts.val), blueprint, training)
    trained_s = time.perf_counter() - began
    digest = write_network(fitted.network, blueprint, folder / "weights.safetensors", folder / "network.json")
    trained = TrainedNetwork.model_construct(
        uri=str(folder / "weights.safetensors"),
        network_uri=str(folder / "network.json"),
        num_parameters=num_parameters(fitted.network),
        import_error=None,
        dataset=dataset,
        digest=digest,
    )
    out = Output("compress", f"seed-{seed}", folder)
    candidates = build_candidates(CandidateBuilder(out, trained, parts, compression), compression.candidates or ())
    score = evaluate(fitted.network, parts.test)[1]
    made_s = time.perf_counter() - began - trained_s
    told = f"trained in {trained_s:.0f} s, test score {score:.4f}, weights {digest[:16]}; candidates in {made_s:.0f} s"
    print(f"seed {seed}: {told}", flush=True)
    return candidates


def judged(candidates: list[BuiltCandidate], test: Examples, rounds: int) -> dict[str, tuple[float, ...]]:
    """For each file except the first: size, time by batch size, score, drop, and its upper end."""
    files = {one.spec.name: one.path for one in candidates}
    first, *others = candidates
    x, y = test.x.numpy(), test.y.numpy()
    timed = latency.compare_latency(
        latency.ComparedFiles(files, first.spec.name), [x[:size] for size in BATCHES], rounds=rounds
    )
    exact = compute_outputs(create_session(first.path), x, is_row_by_row=False).argmax(1) == y
    told = {}
    for one in others:
        right = compute_outputs(create_session(one.path), x, is_row_by_row=one.is_row_by_row).argmax(1) == y
        worse = metrics.accuracy_drop(exact, right)
        size = one.path.stat().st_size / first.path.stat().st_size
        times = [of_batch.ratio.value for of_batch in timed[one.spec.name]]
        told[one.spec.name] = (size, *times, float(right.mean()), worse.value, worse.high)
    return told


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("name", help="a recipe; without --prepare one of wanted.py")
    asked.add_argument("--prepare", type=Path)
    asked.add_argument("--prepared", type=Path)
    asked.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    asked.add_argument("--rounds", type=int, default=100)
    asked.add_argument("--device", default="cuda")
    asked.add_argument("--rows", type=int, help="of each split, to try the script")
    stated = asked.parse_args()
    apply_engine_environment()
    require_state_folder()
    if stated.prepare is not None:
        prepare(stated.name, stated.prepare)
        return
    recipe = read_recipe(stated.name)
    dataset = read_dataset(stated.prepared)
    parts = read_splits(dataset, stated.prepared)
    if stated.rows:
        parts = CandidateSplits(*(Examples(*(of[: stated.rows] for of in part)) for part in parts[:3]))  # type: ignore[union-attr]
    where = torch.cuda.get_device_name() if stated.device == "cuda" else "the processor"
    print(f"{stated.name} on {where}, torch {torch.__version__}")
    lines = []
    for seed in stated.seeds:
        with tempfile.TemporaryDirectory() as folder:
            told = judged(made(recipe, dataset, parts, seed, stated.device, Path(folder)), parts.test, stated.rounds)
        for name, (size, *times, score, drop, high) in told.items():
            ratios = " | ".join(f"{1 / time:.2f}x" for time in times)
            lines.append(f"| {name} | {seed} | {1 / size:.1f}x | {ratios} | {score:.4f} | {drop:+.4f} | {high:+.4f} |")
            print(lines[-1], flush=True)
    print("\n| candidate | seed | smaller | faster, 1 row | 32 rows | test accuracy | worse | upper end |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(sorted(lines)))


if __name__ == "__main__":
    main()
