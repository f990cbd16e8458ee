"""Trains and compresses a recipe's network on a GPU with several seeds, and evaluates it on the official test split.

    BLOOMERY_DATA=… python benchmarks/compression/on_gpu.py NAME --prepare FOLDER
    python benchmarks/compression/on_gpu.py NAME --prepared FOLDER [--seeds 0 1 2] [--rounds 100] [--device cuda]

The first command prepares the rows as the pipeline does and writes them to FOLDER, which can be copied to a machine
with a GPU. The second needs torch, ONNX Runtime, pyarrow and pydantic there, and neither Spark nor Prefect: it trains
as the recipe says and builds the candidates of `candidates.py` with the functions of the stages. Latencies are those of
that machine's CPU, on one thread, in turns; drops are on the test split, with the upper end of the 95% interval.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from candidates import CANDIDATES

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
from bloomery.tasks.compress.built_candidate import BuiltCandidate
from bloomery.tasks.compress.candidate_builder import CandidateBuilder, CandidateSplits, build_candidates
from bloomery.tasks.infrastructure.device import configure_processor
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.train import fit

BATCHES = (1, 32)
RECORD = "dataset.json"


def prepare(name: str, folder: Path) -> None:
    """Runs the stages `ingest` to `prepare`, and writes the splits and their record to `folder`."""
    from bloomery.flows.stages import PLAIN_STAGES
    from bloomery.tasks.ingest.stage import locate_source

    recipe = read_recipe(name)
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset: Dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    folder.mkdir(parents=True, exist_ok=True)

    def copy_split(part: EncodedSplit) -> EncodedSplit:
        source = settings().path(part.uri)
        pq.write_table(pq.read_table(source), folder / source.name, compression="zstd", compression_level=15)
        return part.model_copy(update={"uri": source.name})

    splits = {key: copy_split(getattr(dataset, key)) for key in ("train", "val", "test")}
    (folder / RECORD).write_text(dataset.model_copy(update=splits).model_dump_json(), encoding="utf-8")


def read_dataset(folder: Path) -> Dataset:
    return Dataset.model_validate_json((folder / RECORD).read_text(encoding="utf-8"))


def read_splits(dataset: Dataset, folder: Path) -> CandidateSplits:
    splits = (
        read_examples(folder / part.uri, dataset.key, dataset.layout)
        for part in (dataset.train, dataset.val, dataset.test)
    )
    return CandidateSplits(*splits)


def train_and_compress(
    recipe: Recipe, dataset: Dataset, splits: CandidateSplits, seed: int, device: str, folder: Path
) -> list[BuiltCandidate]:
    training = recipe.training.model_copy(update={"seed": seed, "device": device})
    compression = Compression.model_validate({**CANDIDATES[recipe.name], "device": device})
    blueprint = fit.make_blueprint(dataset, recipe.model)
    configure_processor(training)
    start_s = time.perf_counter()
    fitted = fit.fit_network(fit.TrainingSplits(splits.train, splits.val), blueprint, training)
    training_s = time.perf_counter() - start_s
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
    candidates = build_candidates(CandidateBuilder(out, trained, splits, compression), compression.candidates or ())
    score = evaluate(fitted.network, splits.test)[1]
    compression_s = time.perf_counter() - start_s - training_s
    times = f"training {training_s:.0f} s, candidates {compression_s:.0f} s"
    print(f"seed {seed}: test score {score:.4f}, weights {digest[:16]}, {times}", flush=True)
    return candidates


def measure_candidates(candidates: list[BuiltCandidate], test: Examples, rounds: int) -> dict[str, tuple[float, ...]]:
    """Returns size and latencies relative to the first file, score, drop and its upper end of each other file."""
    files = {candidate.spec.name: candidate.path for candidate in candidates}
    baseline, *compressed = candidates
    x, y = test.x.numpy(), test.y.numpy()
    batches = [x[:size] for size in BATCHES]
    latencies = latency.compare_latency(latency.ComparedFiles(files, baseline.spec.name), batches, rounds=rounds)
    baseline_correct = compute_outputs(create_session(baseline.path), x, is_row_by_row=False).argmax(1) == y
    figures = {}
    for candidate in compressed:
        session = create_session(candidate.path)
        correct = compute_outputs(session, x, is_row_by_row=candidate.is_row_by_row).argmax(1) == y
        drop = metrics.accuracy_drop(baseline_correct, correct)
        size = candidate.path.stat().st_size / baseline.path.stat().st_size
        ratios = [batch.ratio.value for batch in latencies[candidate.spec.name]]
        figures[candidate.spec.name] = (size, *ratios, float(correct.mean()), drop.value, drop.high)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a recipe; without --prepare one that candidates.py has")
    parser.add_argument(
        "--prepare", type=Path, metavar="FOLDER", help="prepare the rows, write them to FOLDER, and end"
    )
    parser.add_argument("--prepared", type=Path, metavar="FOLDER", help="a folder that --prepare has written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, help="rows of each split; for a trial of the script")
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    if options.prepare is not None:
        prepare(options.name, options.prepare)
        return
    recipe = read_recipe(options.name)
    dataset = read_dataset(options.prepared)
    splits = read_splits(dataset, options.prepared)
    if options.rows:
        num = options.rows
        splits = CandidateSplits(*(Examples(x[:num], y[:num], key[:num]) for x, y, key in splits[:3]))
    device_name = torch.cuda.get_device_name() if options.device == "cuda" else "the processor"
    print(f"{options.name} on {device_name}, torch {torch.__version__}")
    lines = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as folder:
            candidates = train_and_compress(recipe, dataset, splits, seed, options.device, Path(folder))
            figures = measure_candidates(candidates, splits.test, options.rounds)
        for name, (size, *latencies, score, drop, high) in figures.items():
            speed_ups = " | ".join(f"{1 / ratio:.2f}x" for ratio in latencies)
            scores = f"{score:.4f} | {drop:+.4f} | {high:+.4f}"
            lines.append(f"| {name} | {seed} | {1 / size:.1f}x | {speed_ups} | {scores} |")
            print(lines[-1], flush=True)
    print("\n| candidate | seed | smaller | faster, 1 row | 32 rows | test accuracy | drop | upper end |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    print("\n".join(sorted(lines)))


if __name__ == "__main__":
    main()
