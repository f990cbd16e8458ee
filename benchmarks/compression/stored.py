"""How few bytes LeNet-5 and LeNet-300-100 can be stored in, judged on MNIST's official test part.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/compression/stored.py [--networks lenet-5 lenet-300-100] [--seeds 0 1 2]

Trains each network on shifted images, makes it sparse in rounds (LAMP), drops units that died, shares what values are
left, and lets those learn; all of it distilled from the network as it was trained. Stores it both ways, decodes it, and
judges what was decoded. The test part is read once for each, when all that is decided has been.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from flows.pipeline import PLAIN
from flows.recipe import read_recipe
from models.compression.codebook import share, shared
from models.compression.dead_units import without_dead_units
from models.compression.pruning import prune
from models.compression.sparsity import density_at, held, masks_of, weights_of
from models.networks.blueprint import Blueprint, build, num_parameters
from models.networks.config import LeNet, Mlp
from models.randomness import fix_randomness
from models.training.batches import Examples, read_examples
from models.training.config import Augment, Loop
from models.training.loop import Learn, Losses, evaluate, train
from tasks.ingest import locate
from tasks.settings import settings

SHIFTED = Augment(shift=2)


class Plan(NamedTuple):
    """What is done to one of the networks."""

    config: LeNet | Mlp
    dense_epochs: int
    num_rounds: int  # of an epoch each, in which weights go
    num_weights: int  # that are left in the end
    epochs: int  # after the last round
    num_values: int
    shared_epochs: int
    augment: Augment = Augment()  # while weights go
    learning_rate: float = 3e-3
    weight: float = 0.9  # of the teacher
    temperature: float = 4.0
    narrowed: float = 0.0  # the share of units that goes as a whole, before single weights do


PLANS = {
    "lenet-5": Plan(LeNet(kind="lenet"), 6, 10, 3000, 8, 8, 4),
    "lenet-300-100": Plan(Mlp(kind="mlp", hidden=(300, 100), norm="none", dropout=0.0), 25, 20, 3600, 25, 8, 8),
}


class Parts(NamedTuple):
    train: Examples
    val: Examples
    test: Examples


def distilled(teacher: nn.Module, temperature: float, weight: float) -> Callable[[nn.Module, Loop], Learn]:
    """To learn from the labels and, by `weight`, from what `teacher` answers to the same rows.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2.
    """

    def learner(network: nn.Module, loop: Loop) -> Learn:
        def learn(x: torch.Tensor, losses: Losses, share: float) -> torch.Tensor:
            outputs_BK = network(x)
            with torch.no_grad():
                told_BK = (teacher(x) / temperature).log_softmax(1)
            mine_BK = (outputs_BK / temperature).log_softmax(1)
            apart = F.kl_div(mine_BK, told_BK, reduction="sum", log_target=True) * temperature**2
            loss = (1 - weight) * losses(outputs_BK, slice(None)) + weight * apart
            (loss / share).backward()
            return loss.detach()

        return learn

    return learner


def read_parts() -> tuple[Parts, Blueprint]:
    recipe = read_recipe("mnist")
    rows = PLAIN.ingest(locate(recipe.data, recipe.contract.personal_columns))
    dataset = PLAIN.prepare(PLAIN.validate(rows, recipe.contract), recipe.features, recipe.means)
    parts = (dataset.train, dataset.val, dataset.test)
    read = (read_examples(settings().path(part.uri), dataset.key, dataset.layout) for part in parts)
    return Parts(*read), Blueprint(config=recipe.model, layout=dataset.layout, num_outputs=10)


def dense(name: str, seed: int, parts: Parts, blueprint: Blueprint) -> nn.Module:
    """The network as it is trained before anything goes; kept, since it takes longest."""
    path = settings().home / f"{name}-{seed}.safetensors"
    fix_randomness(seed, num_threads=1)
    network = build(blueprint)
    if path.exists():
        network.load_state_dict(load_file(path))
        return network.eval()
    loop = Loop(epochs=PLANS[name].dense_epochs, batch_size=128, learning_rate=2e-3, augment=SHIFTED)
    train(network, parts.train, parts.val, loop, seed=seed)
    save_file(network.state_dict(), path)
    return network


def sparsified(
    plan: Plan, teacher: nn.Module, blueprint: Blueprint, parts: Parts, seed: int, say: Callable[[str], None]
) -> tuple[nn.Module, Blueprint]:
    """`plan.num_weights` of the teacher's weights, in few values."""
    learner = distilled(teacher, plan.temperature, plan.weight)
    total = sum(weight.numel() for weight in weights_of(teacher).values())
    network, found = prune(teacher, blueprint, plan.narrowed) if plan.narrowed else (teacher, blueprint)
    teacher = copy.deepcopy(teacher).to(memory_format=torch.channels_last)
    for number in range(1, plan.num_rounds + 1):
        num_left = density_at(number, plan.num_rounds, last=plan.num_weights / total, first=0.2) * total
        network, found = without_dead_units(network, found)  # the share is of what the last round has left
        here = sum(weight.numel() for weight in weights_of(network).values())
        masks = masks_of(network, min(num_left / here, 1.0))
        is_last = number == plan.num_rounds
        loop = Loop(
            epochs=plan.epochs if is_last else 1,
            batch_size=128,
            learning_rate=plan.learning_rate,
            schedule="cosine",
            weight_decay=0.0,
            augment=plan.augment,
        )
        began = time.perf_counter()
        with held(network, masks):
            history = train(network, parts.train, parts.val, loop, seed=seed * 1000 + number, spread=learner)
        say(f"round {number}: {num_left:.0f} weights, {found.config}, {history[-1]}, {time.perf_counter() - began:.0f} s")
    network, found = without_dead_units(network, found)
    books = share(network, plan.num_values)
    loop = Loop(
        epochs=plan.shared_epochs,
        batch_size=128,
        learning_rate=1e-3,
        schedule="cosine",
        weight_decay=0.0,
        augment=plan.augment,
    )
    with shared(network, books):
        history = train(network, parts.train, parts.val, loop, seed=seed * 1000, spread=learner)
    say(f"shared: {found.config}, {history[-1]}")
    return network, found
