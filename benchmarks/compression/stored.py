"""Measures how few bytes LeNet-5 and LeNet-300-100 need, with their error on MNIST's official test split.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/compression/stored.py [--networks lenet-5 lenet-300-100] [--seeds 0 1 2]

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
    narrowed: float  # the ratio of structured pruning, before single weights are pruned
    num_rounds: int  # of pruning, of one epoch each
    first: float  # the density of the first round
    num_weights: int  # nonzero in the end
    epochs: int  # of the last round
    learning_rate: float
    lesson: Distillation
    num_values: int = 8
    nearing_epochs: int = 3
    shared_epochs: int = 3


_LESSON = Distillation(temperature=2.0, weight=0.9)
_PERCEPTRON = Mlp(kind="mlp", hidden=(300, 100), norm="none", dropout=0.0)
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
        _LESSON,
        nearing_epochs=5,
        shared_epochs=5,
    ),
    "lenet-300-100": Plan(_PERCEPTRON, 25, Augment(), 0.5, 10, 0.2, 5650, 10, 4e-3, _LESSON),
}


class Parts(NamedTuple):
    train: Examples
    val: Examples
    test: Examples


def read_splits() -> tuple[Parts, Layout]:
    from bloomery.flows.pipeline import (
        PLAIN_STAGES,
    )  # imported here, since `distilled.py --prepared` needs neither Spark nor Prefect
    from bloomery.tasks.ingest.stage import locate_source

    recipe = read_recipe("mnist")
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    parts = (dataset.train, dataset.val, dataset.test)
    read = (read_examples(settings().path(part.uri), dataset.key, dataset.layout) for part in parts)
    return Parts(*read), dataset.layout


def dense(name: str, seed: int, parts: Parts, blueprint: Blueprint) -> nn.Module:
    """The network before compression; cached, since it takes longest."""
    path = settings().home / f"{name}-{seed}.safetensors"
    set_deterministic(seed, num_threads=1)
    network = build_network(blueprint)
    if path.exists():
        network.load_state_dict(load_file(path))
        return network.eval()
    loop = Loop(epochs=PLANS[name].dense_epochs, batch_size=128, learning_rate=2e-3, augment=SHIFTED)
    train(network, TrainingData(parts.train, parts.val, seed=seed), loop)
    save_file(network.state_dict(), path)
    return network


def loop_of(plan: Plan, epochs: int, learning_rate: float) -> Loop:
    return Loop(
        epochs=epochs,
        batch_size=128,
        learning_rate=learning_rate,
        schedule="cosine",
        weight_decay=0.0,
        augment=plan.augment,
    )


def sparsified(
    plan: Plan, teacher: nn.Module, blueprint: Blueprint, parts: Parts, seed: int
) -> tuple[nn.Module, Blueprint]:
    """Prunes the teacher to `plan.num_weights` weights in its remaining units."""
    placement = Placement(parallelize=create_distiller(teacher, plan.lesson))
    total = sum(weight.numel() for weight in maskable_weights(teacher).values())
    network, found = prune_network(teacher, blueprint, Pruning(ratio=plan.narrowed))
    for number in range(1, plan.num_rounds + 1):
        num_left = scheduled_density(number, plan.num_rounds, last=plan.num_weights / total, first=plan.first) * total
        network, found = remove_dead_units(network, found)  # so that the density refers to the remaining weights
        here = sum(weight.numel() for weight in maskable_weights(network).values())
        loop = loop_of(plan, plan.epochs if number == plan.num_rounds else 1, plan.learning_rate)
        with fixed_masks(network, compute_masks(network, min(num_left / here, 1.0))):
            history = train(
                network, TrainingData(parts.train, parts.val, seed=seed * 1000 + number), loop, placement=placement
            )
        say(f"round {number}, {num_left:.0f} weights in {found.config}: {history[-1]}")
    return remove_dead_units(network, found)


def few_valued(plan: Plan, teacher: nn.Module, network: nn.Module, parts: Parts, seed: int) -> nn.Module:
    """Clusters `network` to `plan.num_values` values a layer: first centroids follow weights, then they are trained."""
    placement = Placement(parallelize=create_distiller(teacher, plan.lesson))
    network = copy.deepcopy(network)
    masks = {name: weight != 0 for name, weight in network.named_parameters()}
    loop = loop_of(plan, plan.nearing_epochs, plan.learning_rate / 4)
    with fixed_masks(network, masks), straight_through_clusters(network, plan.num_values):
        history = train(
            network, TrainingData(parts.train, parts.val, seed=seed * 1000 + 500), loop, placement=placement
        )
    say(f"nearing: {history[-1]}")
    loop = loop_of(plan, plan.shared_epochs, plan.learning_rate / 4)
    with shared_weights(network, cluster_weights(network, plan.num_values)):
        history = train(
            network, TrainingData(parts.train, parts.val, seed=seed * 1000 + 600), loop, placement=placement
        )
    say(f"shared: {history[-1]}")
    return network


class Reached(NamedTuple):
    """The result of one seed. Errors are shares of the test split, sizes are bytes."""

    dense_error: float
    error: float
    coded: int
    plain: int
    decode_s: float


def reach(name: str, seed: int, parts: Parts, layout: Layout) -> Reached:
    """Both storage formats of the network, evaluated from the decoded file by ONNX Runtime."""
    plan = PLANS[name]
    blueprint = Blueprint(config=plan.config, layout=layout, num_outputs=10)
    teacher = dense(name, seed, parts, blueprint)
    network, _ = sparsified(plan, teacher, blueprint, parts, seed)
    return judged(few_valued(plan, teacher, network, parts, seed), teacher, parts)


def judged(network: nn.Module, teacher: nn.Module, parts: Parts) -> Reached:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network, parts.val.x, path)
        coded, plainly = encode(minify(path.read_bytes())), pack_for_zstd(path.read_bytes())
    began = time.perf_counter()
    decoded = decode(coded)
    took = time.perf_counter() - began
    errors = [error_of(model, parts.test) for model in (decoded, decompress(plainly))]
    assert errors[0] == errors[1], errors
    return Reached(1 - evaluate(teacher, parts.test)[1], errors[0], len(coded), len(plainly), took)


def error_of(model: bytes, part: Examples) -> float:
    answers = run_session(create_session(model), part.x.numpy())
    return float((answers.argmax(1) != part.y.numpy()).mean())


_BEGAN = time.perf_counter()


def say(what: str) -> None:
    print(f"    {time.perf_counter() - _BEGAN:5.0f} s  {what}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", nargs="+", default=PLANS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    stated = parser.parse_args()
    parts, layout = read_splits()
    print("| network | seed | dense error | error | coded | plain | decoded in |\n| --- " + "| ---: " * 6 + "|")
    for name in stated.networks:
        config = PLANS[name].config
        network = build_network(Blueprint(config=config, layout=layout, num_outputs=10))
        num_bytes = 4 * num_parameters(network)  # as the papers on compression do
        all_reached = []
        for seed in stated.seeds:
            all_reached.append(reach(name, seed, parts, layout))
            print(row_of(name, str(seed), all_reached[-1], num_bytes), flush=True)
        means = Reached(*(statistics.mean(figures) for figures in zip(*all_reached, strict=True)))
        print(row_of(name, "mean", means, num_bytes), flush=True)


def row_of(name: str, seed: str, reached: Reached, num_bytes: int) -> str:
    sizes = (f"{size:,.0f} ({num_bytes / size:.0f}x)" for size in (reached.coded, reached.plain))
    errors = (f"{error:.2%}" for error in (reached.dense_error, reached.error))
    return f"| {' | '.join([name, seed, *errors, *sizes, f'{reached.decode_s:.1f} s'])} |"


if __name__ == "__main__":
    main()
