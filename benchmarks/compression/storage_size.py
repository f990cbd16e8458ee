"""Measures how few bytes LeNet-5 and LeNet-300-100 need, with their error on MNIST's official test split.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/compression/storage_size.py [--networks lenet-5 lenet-300-100]
        [--seeds 0 1 2]

Trains each network on shifted images, prunes it in rounds (LAMP), removes dead units, clusters the weights and trains
the centroids, all by distillation from the trained network. Stores it in both formats, decodes it, and evaluates the
decoded network. The test split is read once for each, after all decisions.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_file
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.models.compression.config import Distillation, Pruning
from bloomery.models.compression.distillation import create_distiller
from bloomery.models.compression.pruning.dead_units import remove_dead_units
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.pruning.unstructured import (
    compute_masks,
    fixed_masks,
    maskable_weights,
    scheduled_density,
)
from bloomery.models.compression.weight_clustering import cluster_weights, shared_weights, straight_through_clusters
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import LeNet, Mlp
from bloomery.models.onnx_storage.decoder import decode, decompress
from bloomery.models.onnx_storage.encoder import encode
from bloomery.models.onnx_storage.zstd_packing import minify, pack_for_zstd
from bloomery.models.training.config import Augment, Loop
from bloomery.models.training.data.batches import Examples, TrainingData, read_examples
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import Placement, evaluate, train
from bloomery.tasks.infrastructure.settings import settings

SHIFTED = Augment(shift=2)


class Plan(NamedTuple):
    """The compression of one network."""

    config: LeNet | Mlp
    dense_epochs: int
    augment: Augment  # after the dense training; a small network needs little
    prune_ratio: float  # of structured pruning, before single weights are pruned
    num_rounds: int  # of pruning, of one epoch each
    first_density: float  # after the first round
    num_weights: int  # nonzero in the end
    epochs: int  # of the last round
    learning_rate: float
    distillation: Distillation
    num_clusters: int = 8
    clustering_epochs: int = 3  # while centroids follow the weights
    centroid_epochs: int = 3  # while the centroids are trained


_DISTILLATION = Distillation(temperature=2.0, weight=0.9)
_MLP = Mlp(kind="mlp", hidden=(300, 100), norm="none", dropout=0.0)
PLANS = {
    "lenet-5": Plan(
        LeNet(kind="lenet"),
        6,
        Augment(shift=1),
        0.5,
        5,
        0.05,
        3800,
        14,
        4e-3,
        _DISTILLATION,
        clustering_epochs=5,
        centroid_epochs=5,
    ),
    "lenet-300-100": Plan(_MLP, 25, Augment(), 0.5, 10, 0.2, 5650, 10, 4e-3, _DISTILLATION),
}


class Splits(NamedTuple):
    train: Examples
    val: Examples
    test: Examples


def read_splits() -> tuple[Splits, Layout]:
    # Imported here, since `distillation.py --prepared` needs neither Spark nor Prefect.
    from bloomery.flows.stages import PLAIN_STAGES
    from bloomery.tasks.ingest.stage import locate_source

    recipe = read_recipe("mnist")
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    splits = (
        read_examples(settings().path(split.uri), dataset.key, dataset.layout)
        for split in (dataset.train, dataset.val, dataset.test)
    )
    return Splits(*splits), dataset.layout


def train_dense(name: str, seed: int, splits: Splits, blueprint: Blueprint) -> nn.Module:
    """Trains the network before compression, or reads it from the state folder, since this training takes longest."""
    path = settings().home / f"{name}-{seed}.safetensors"
    set_deterministic(seed, num_threads=1)
    network = build_network(blueprint)
    if path.exists():
        network.load_state_dict(load_file(path))
        return network.eval()
    loop = Loop(epochs=PLANS[name].dense_epochs, batch_size=128, learning_rate=2e-3, augment=SHIFTED)
    train(network, TrainingData(splits.train, splits.val, seed=seed), loop)
    save_file(network.state_dict(), path)
    return network


def make_loop(plan: Plan, epochs: int, learning_rate: float) -> Loop:
    return Loop(
        epochs=epochs,
        batch_size=128,
        learning_rate=learning_rate,
        schedule="cosine",
        weight_decay=0.0,
        augment=plan.augment,
    )


def prune(
    plan: Plan, teacher: nn.Module, blueprint: Blueprint, splits: Splits, seed: int
) -> tuple[nn.Module, Blueprint]:
    """Prunes the teacher to `plan.num_weights` weights in its remaining units."""
    placement = Placement(parallelize=create_distiller(teacher, plan.distillation))
    total = sum(weight.numel() for weight in maskable_weights(teacher).values())
    network, blueprint = prune_network(teacher, blueprint, Pruning(ratio=plan.prune_ratio))
    for number in range(1, plan.num_rounds + 1):
        num_left = (
            scheduled_density(number, plan.num_rounds, last=plan.num_weights / total, first=plan.first_density) * total
        )
        network, blueprint = remove_dead_units(
            network, blueprint
        )  # so that the density refers to the remaining weights
        num_maskable = sum(weight.numel() for weight in maskable_weights(network).values())
        loop = make_loop(plan, plan.epochs if number == plan.num_rounds else 1, plan.learning_rate)
        with fixed_masks(network, compute_masks(network, min(num_left / num_maskable, 1.0))):
            data = TrainingData(splits.train, splits.val, seed=seed * 1000 + number)
            history = train(network, data, loop, placement=placement)
        log(f"round {number}, {num_left:.0f} weights in {blueprint.config}: {history[-1]}")
    return remove_dead_units(network, blueprint)


def cluster(plan: Plan, teacher: nn.Module, network: nn.Module, splits: Splits, seed: int) -> nn.Module:
    """Clusters each layer to `plan.num_clusters` values: centroids follow the weights first, and are then trained."""
    placement = Placement(parallelize=create_distiller(teacher, plan.distillation))
    network = copy.deepcopy(network)
    masks = {name: weight != 0 for name, weight in network.named_parameters()}
    loop = make_loop(plan, plan.clustering_epochs, plan.learning_rate / 4)
    with fixed_masks(network, masks), straight_through_clusters(network, plan.num_clusters):
        data = TrainingData(splits.train, splits.val, seed=seed * 1000 + 500)
        history = train(network, data, loop, placement=placement)
    log(f"clustering: {history[-1]}")
    loop = make_loop(plan, plan.centroid_epochs, plan.learning_rate / 4)
    with shared_weights(network, cluster_weights(network, plan.num_clusters)):
        data = TrainingData(splits.train, splits.val, seed=seed * 1000 + 600)
        history = train(network, data, loop, placement=placement)
    log(f"centroids: {history[-1]}")
    return network


class Result(NamedTuple):
    """The result of one seed. Errors are shares of the test split, sizes are bytes."""

    dense_error: float
    error: float
    entropy_coded_size: int
    zstd_size: int
    decode_s: float


def compress_and_evaluate(name: str, seed: int, splits: Splits, layout: Layout) -> Result:
    """Trains and compresses a network, and measures its files in both storage formats."""
    plan = PLANS[name]
    blueprint = Blueprint(config=plan.config, layout=layout, num_outputs=10)
    teacher = train_dense(name, seed, splits, blueprint)
    network, _ = prune(plan, teacher, blueprint, splits, seed)
    return measure_storage(cluster(plan, teacher, network, splits, seed), teacher, splits)


def measure_storage(network: nn.Module, teacher: nn.Module, splits: Splits) -> Result:
    """Stores the network in both formats, and evaluates the decoded files by ONNX Runtime."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, splits.val.x, path)
        entropy_coded, packed = encode(minify(path.read_bytes())), pack_for_zstd(path.read_bytes())
    start_s = time.perf_counter()
    decoded = decode(entropy_coded)
    decode_s = time.perf_counter() - start_s
    errors = [measure_error(model, splits.test) for model in (decoded, decompress(packed))]
    assert errors[0] == errors[1], f"the two formats have different errors: {errors}"
    return Result(1 - evaluate(teacher, splits.test)[1], errors[0], len(entropy_coded), len(packed), decode_s)


def measure_error(model: bytes, rows: Examples) -> float:
    outputs = run_session(create_session(model), rows.x.numpy())
    return float((outputs.argmax(1) != rows.y.numpy()).mean())


_START_S = time.perf_counter()


def log(message: str) -> None:
    """Prints a message with the seconds since the start."""
    print(f"    {time.perf_counter() - _START_S:5.0f} s  {message}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=PLANS, default=list(PLANS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    splits, layout = read_splits()
    print(
        "| network | seed | dense error | error | entropy-coded | .onnx.zst | decoding |\n| --- " + "| ---: " * 6 + "|"
    )
    for name in options.networks:
        config = PLANS[name].config
        network = build_network(Blueprint(config=config, layout=layout, num_outputs=10))
        num_bytes = 4 * num_parameters(network)  # the reference in papers on compression
        results = []
        for seed in options.seeds:
            results.append(compress_and_evaluate(name, seed, splits, layout))
            print(format_row(name, str(seed), results[-1], num_bytes), flush=True)
        means = Result(*(statistics.mean(figures) for figures in zip(*results, strict=True)))
        print(format_row(name, "mean", means, num_bytes), flush=True)


def format_row(name: str, seed: str, result: Result, num_bytes: int) -> str:
    sizes = (f"{size:,.0f} ({num_bytes / size:.0f}x)" for size in (result.entropy_coded_size, result.zstd_size))
    errors = (f"{error:.2%}" for error in (result.dense_error, result.error))
    return f"| {' | '.join([name, seed, *errors, *sizes, f'{result.decode_s:.1f} s'])} |"


if __name__ == "__main__":
    main()
