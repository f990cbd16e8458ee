"""Measures the accuracy of small networks on MNIST with a tenth of the labels: with labels only, by distillation, and
by distillation with unlabelled rows.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/compression/distillation.py [--student mlp] [--split val]

The seed determines which rows keep their labels, the initial weights, the order and the shifts. One teacher has the
same tenth of the labels as its student; another, which all seeds share, has all of them. Settings were chosen on the
validation split (`--split val`); a tenth of it selects the best epoch of each training.
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
from storage_size import Splits, log, read_splits
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
STUDENTS: dict[str, LeNet | Mlp] = {
    "mlp": Mlp(kind="mlp", hidden=(128, 64), dropout=0.0),
    "lenet": LeNet(kind="lenet", channels=(5, 12), hidden=125),
}
LABELLED_SHARE = 0.1
_BASELINE = "labels only, shifted images"
DISTILLATION = Distillation(weight=0.9, temperature=2.0)
_TEACHER_SHIFT = 2
_TEACHER_EPOCHS = {"few": 50, "all": 10}  # by the labels of the teacher


class SeedRows(NamedTuple):
    """The training rows of one seed."""

    labelled: Examples
    with_unlabelled: Examples  # the labelled rows first, then those without labels
    val: Examples


class StudentSettings(NamedTuple):
    config: LeNet | Mlp
    layout: Layout
    shift: int
    distillation: Distillation
    labelled_epochs: int  # with the labelled rows
    all_epochs: int  # with all rows
    device: str


def select_rows(seed: int, splits: Splits) -> SeedRows:
    order = torch.randperm(splits.train.num_rows, generator=torch.Generator().manual_seed(seed))
    labelled_rows, unlabelled_rows = (
        rows.sort().values for rows in order.tensor_split([round(LABELLED_SHARE * len(order))])
    )
    labelled = Examples(
        splits.train.x[labelled_rows], splits.train.y[labelled_rows], splits.train.key[labelled_rows.numpy()]
    )
    step = round(1 / LABELLED_SHARE)
    val = Examples(splits.val.x[::step], splits.val.y[::step], splits.val.key[::step])
    return SeedRows(labelled, add_unlabelled(labelled, splits.train.x[unlabelled_rows]), val)


def make_loop(epochs: int, shift: int) -> Loop:
    return Loop(epochs=epochs, batch_size=128, learning_rate=3e-3, augment=Augment(shift=shift))


def train_student(
    student: StudentSettings, rows: Examples, val: Examples, seed: int, teacher: nn.Module | None, epochs: int
) -> nn.Module:
    set_deterministic(seed, num_threads=1)
    network = build_network(Blueprint(config=student.config, layout=student.layout, num_outputs=10))
    learner = create_learner if teacher is None else create_distiller(teacher, student.distillation)
    if teacher is not None:
        teacher.to(student.device)
    placement = Placement(student.device, parallelize=learner)
    train(network, TrainingData(rows, val, seed=seed), make_loop(epochs, student.shift), placement=placement)
    return network


def get_teacher(name: str, seed: int, student: StudentSettings, rows: Examples, val: Examples) -> nn.Module:
    """Trains LeNet-5 on shifted images and labels, or reads it from the state folder, since this takes longest."""
    path = settings().home / f"distilled-{name}-{seed}.safetensors"
    if path.exists():
        network = build_network(Blueprint(config=TEACHER, layout=student.layout, num_outputs=10))
        network.load_state_dict(load_file(path))
        return network.eval()
    teacher_settings = student._replace(config=TEACHER, shift=_TEACHER_SHIFT)
    network = train_student(teacher_settings, rows, val, seed, None, _TEACHER_EPOCHS[name])
    save_file(network.state_dict(), path)
    return network


def measure_errors(seed: int, student: StudentSettings, splits: Splits, test: Examples) -> dict[str, float]:
    """Trains all networks of one seed, and returns the error of each on `test`."""
    rows, errors = select_rows(seed, splits), {}

    def measure(name: str, network: nn.Module) -> nn.Module:
        errors[name] = 1 - evaluate(network, test)[1]
        log(f"seed {seed}, {name}: {errors[name]:.2%}")
        return network

    unshifted = student._replace(shift=0)
    measure(
        "labels only, images as they are",
        train_student(unshifted, rows.labelled, rows.val, seed, None, student.labelled_epochs),
    )
    measure(_BASELINE, train_student(student, rows.labelled, rows.val, seed, None, student.labelled_epochs))
    teacher = measure("teacher with the same labels", get_teacher("few", seed, student, rows.labelled, rows.val))
    measure(
        "distilled, labelled rows",
        train_student(student, rows.labelled, rows.val, seed, teacher, student.labelled_epochs),
    )
    measure(
        "distilled, all rows", train_student(student, rows.with_unlabelled, rows.val, seed, teacher, student.all_epochs)
    )
    teacher = measure("teacher with all labels", get_teacher("all", 0, student, splits.train, splits.val))
    measure(
        "distilled from it, all rows",
        train_student(student, rows.with_unlabelled, rows.val, seed, teacher, student.all_epochs),
    )
    return errors


def _read_prepared(folder: Path) -> tuple[Splits, Layout]:
    dataset = on_gpu.read_dataset(folder)
    return Splits(*on_gpu.read_splits(dataset, folder)[:3]), dataset.layout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", choices=STUDENTS, default="mlp")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", choices=("val", "test"), default="test", help="evaluate on this split")
    parser.add_argument(
        "--shift", type=int, default=1, help="largest shift of images in pixels, when students are trained"
    )
    parser.add_argument("--temperature", type=float, default=DISTILLATION.temperature)
    parser.add_argument("--weight", type=float, default=DISTILLATION.weight)
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=[40, 10], metavar=("LABELLED", "ALL"), help="on these rows"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prepared", type=Path, help="a folder from `on_gpu.py mnist --prepare`")
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    splits, layout = read_splits() if options.prepared is None else _read_prepared(options.prepared)
    labelled_epochs, all_epochs = options.epochs
    distillation = Distillation(weight=options.weight, temperature=options.temperature)
    student = StudentSettings(
        STUDENTS[options.student], layout, options.shift, distillation, labelled_epochs, all_epochs, options.device
    )
    network = build_network(Blueprint(config=student.config, layout=layout, num_outputs=10))
    print(f"{student}\n{num_parameters(network):,} parameters", flush=True)
    start_s = time.perf_counter()
    errors = [measure_errors(seed, student, splits, getattr(splits, options.split)) for seed in options.seeds]
    print(f"{(time.perf_counter() - start_s) / len(errors):.0f} s per seed\n")
    print(f"| | {' | '.join(f'seed {seed}' for seed in options.seeds)} | mean | fewer errors than with labels only |")
    print(f"| --- {'| ---: ' * (len(errors) + 2)}|")
    baseline = statistics.mean(seed_errors[_BASELINE] for seed_errors in errors)
    for name in errors[0]:
        figures = [seed_errors[name] for seed_errors in errors]
        mean = statistics.mean(figures)
        print(f"| {name} | {' | '.join(f'{figure:.2%}' for figure in figures)} | {mean:.2%} | {baseline / mean:.2f}x |")


if __name__ == "__main__":
    main()
