"""Measures the accuracy of small networks on MNIST with a tenth of the labels: with labels only, by distillation, and
by distillation with unlabelled rows.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/compression/distilled.py [--student mlp] [--part val]

The seed determines which rows keep their labels, the initial weights, the order and the shifts. One teacher has the
same tenth of the labels as its student; another, which all seeds share, has all of them. Settings were chosen on the
validation split (`--part val`); a tenth of it selects the best epoch of each training.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import NamedTuple

import on_gpu
import torch
from safetensors.torch import load_file, save_file
from stored import Parts, read_splits, say
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Distillation
from bloomery.models.compression.distillation import add_unlabelled, create_distiller
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import LeNet, Mlp
from bloomery.models.training.config import Augment, Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import Placement, evaluate, train
from bloomery.models.training.optimization.learner import create_learner
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings

TEACHER = LeNet(kind="lenet")
STUDENTS = {
    "mlp": Mlp(kind="mlp", hidden=(128, 64), dropout=0.0),
    "lenet": LeNet(kind="lenet", channels=(5, 12), hidden=125),
}
LABELLED = 0.1
_ALONE = "alone, shifted images"
LESSON = Distillation(weight=0.9, temperature=2.0)
_TEACHERS_SHIFT = 2
_TEACHERS_EPOCHS = {"few": 50, "all": 10}


class Rows(NamedTuple):
    """The training rows of one seed."""

    few: Examples
    with_others: Examples  # the labelled rows first, then those without labels
    val: Examples


class Asked(NamedTuple):
    student: LeNet | Mlp
    layout: Layout
    shift: int
    lesson: Distillation
    few_epochs: int
    all_epochs: int
    device: str


def rows_of(seed: int, parts: Parts) -> Rows:
    order = torch.randperm(parts.train.num_rows, generator=torch.Generator().manual_seed(seed))
    few, others = (rows.sort().values for rows in order.tensor_split([round(LABELLED * len(order))]))
    labelled = Examples(parts.train.x[few], parts.train.y[few], parts.train.key[few.numpy()])
    val = Examples(*(one[:: round(1 / LABELLED)] for one in parts.val))
    return Rows(labelled, add_unlabelled(labelled, parts.train.x[others]), val)


def loop_of(epochs: int, shift: int) -> Loop:
    return Loop(epochs=epochs, batch_size=128, learning_rate=3e-3, augment=Augment(shift=shift))


def taught(asked: Asked, rows: Examples, val: Examples, seed: int, teacher: nn.Module | None, epochs: int) -> nn.Module:
    set_deterministic(seed, num_threads=1)
    network = build_network(Blueprint(config=asked.student, layout=asked.layout, num_outputs=10))
    learner = create_learner if teacher is None else create_distiller(teacher, asked.lesson)
    if teacher is not None:
        teacher.to(asked.device)
    placement = Placement(asked.device, parallelize=learner)
    train(network, TrainingData(rows, val, seed=seed), loop_of(epochs, asked.shift), placement=placement)
    return network


def teacher_of(name: str, seed: int, asked: Asked, rows: Examples, val: Examples) -> nn.Module:
    """LeNet-5, trained on shifted images and labels; cached, since it takes longest."""
    path = settings().home / f"distilled-{name}-{seed}.safetensors"
    if path.exists():
        network = build_network(Blueprint(config=TEACHER, layout=asked.layout, num_outputs=10))
        network.load_state_dict(load_file(path))
        return network.eval()
    asked = asked._replace(student=TEACHER, shift=_TEACHERS_SHIFT)
    network = taught(asked, rows, val, seed, None, _TEACHERS_EPOCHS[name])
    save_file(network.state_dict(), path)
    return network


def reached(seed: int, asked: Asked, parts: Parts, judged_by: Examples) -> dict[str, float]:
    """The error of each network on `judged_by`."""
    rows, errors = rows_of(seed, parts), {}

    def judge(name: str, network: nn.Module) -> nn.Module:
        errors[name] = 1 - evaluate(network, judged_by)[1]
        say(f"seed {seed}, {name}: {errors[name]:.2%}")
        return network

    still = asked._replace(shift=0)
    judge("alone, images as they are", taught(still, rows.few, rows.val, seed, None, asked.few_epochs))
    judge(_ALONE, taught(asked, rows.few, rows.val, seed, None, asked.few_epochs))
    teacher = judge("teacher of the same labels", teacher_of("few", seed, asked, rows.few, rows.val))
    judge("taught, the same rows", taught(asked, rows.few, rows.val, seed, teacher, asked.few_epochs))
    judge("taught, unlabelled rows too", taught(asked, rows.with_others, rows.val, seed, teacher, asked.all_epochs))
    teacher = judge("teacher of all labels", teacher_of("all", 0, asked, parts.train, parts.val))
    judge("taught by it, all rows", taught(asked, rows.with_others, rows.val, seed, teacher, asked.all_epochs))
    return errors


def _prepared(folder: Path) -> tuple[Parts, Layout]:
    dataset = on_gpu.read_dataset(folder)
    return Parts(*on_gpu.read_splits(dataset, folder)[:3]), dataset.layout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--student", choices=STUDENTS, default="mlp")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--part", choices=("val", "test"), default="test")
    parser.add_argument("--shift", type=int, default=1, help="of the students' augmentation")
    parser.add_argument("--temperature", type=float, default=LESSON.temperature)
    parser.add_argument("--weight", type=float, default=LESSON.weight)
    parser.add_argument("--epochs", type=int, nargs=2, default=[40, 10], metavar=("FEW", "ALL"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prepared", type=Path, help="a folder from `on_gpu.py mnist --prepare`")
    stated = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    parts, layout = read_splits() if stated.prepared is None else _prepared(stated.prepared)
    lesson = Distillation(weight=stated.weight, temperature=stated.temperature)
    asked = Asked(STUDENTS[stated.student], layout, stated.shift, lesson, *stated.epochs, stated.device)
    student = build_network(Blueprint(config=asked.student, layout=layout, num_outputs=10))
    print(f"{asked}\n{num_parameters(student):,} parameters", flush=True)
    began = time.perf_counter()
    errors = [reached(seed, asked, parts, getattr(parts, stated.part)) for seed in stated.seeds]
    print(f"{(time.perf_counter() - began) / len(errors):.0f} s a seed\n")
    print(f"| | {' | '.join(f'seed {seed}' for seed in stated.seeds)} | mean | fewer than alone |")
    print(f"| --- {'| ---: ' * (len(errors) + 2)}|")
    alone = statistics.mean(of_seed[_ALONE] for of_seed in errors)
    for name in errors[0]:
        figures = [of_seed[name] for of_seed in errors]
        mean = statistics.mean(figures)
        print(f"| {name} | {' | '.join(f'{one:.2%}' for one in figures)} | {mean:.2%} | {alone / mean:.2f}x |")


if __name__ == "__main__":
    main()
