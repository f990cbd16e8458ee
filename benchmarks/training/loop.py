"""Measures the training throughput of Bloomery, a hand-written loop, and the Trainers of Lightning and Hugging Face.

    python benchmarks/training/loop.py [--threads 1] [--rounds 7] [--networks cnn lstm transformer] [--scale 1.0]

Every loop trains the same networks from the same initial weights on the same rows in memory, with the same loss, AdamW,
one-cycle schedule and gradient clipping. Bloomery's loop is `bloomery.tasks.train.fit.fit_network`, called as the stage
`train` calls it: with loss checks, a checkpointer, deterministic algorithms, and a validation split of two rows. The
other loops have none of these. Each Trainer has its fastest known settings: rows are fetched a batch at a time, without
progress bar, logging or checkpoints.

The loops run in turns. Each round trains every network from the start, and does not count the first epoch, which
includes setup. A ratio compares two loops within one round; the table has the median over the rounds, and their range.
Processor time is less sensitive to other load on the machine than wall-clock time. Lightning and Hugging Face are left
out where they are not installed. To install them into a folder PEERS:

    pip install --no-deps --target PEERS lightning lightning-utilities torchmetrics accelerate datasets dill xxhash \
        multiprocess
    PYTHONPATH=PEERS python benchmarks/training/loop.py
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import peers
import torch
from torch import nn
from training_task import EpochTimes, TrainingLoop, TrainingTask

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint
from bloomery.models.networks.config import Cnn, Rnn, Transformer
from bloomery.models.training.checkpointing import Checkpointer
from bloomery.models.training.config import Checkpoints, Training
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.loop import TrainingHooks
from bloomery.tasks.infrastructure.device import configure_processor
from bloomery.tasks.train import fit

HAND_WRITTEN = "hand-written"


def train_by_bloomery(task: TrainingTask, times: EpochTimes) -> None:
    two_rows = Examples(task.rows.x[:2], task.rows.y[:2], task.rows.key[:2])
    with tempfile.TemporaryDirectory() as folder:
        configure_processor(task.training)
        checkpointer = Checkpointer(Path(folder), Checkpoints())
        fit.fit_network(
            fit.TrainingSplits(task.rows, two_rows),
            task.blueprint,
            task.training,
            hooks=TrainingHooks(on_epoch=times.record, load=checkpointer.load, save=checkpointer.save),
        )
    torch.use_deterministic_algorithms(False)


def train_by_hand(task: TrainingTask, times: EpochTimes) -> None:
    network, compute_loss, (x, y, _) = task.build_network(), task.build_loss(), task.rows
    optimizer = task.build_optimizer(network)
    schedule = task.build_schedule(optimizer)
    parameters = list(network.parameters())
    for _ in range(task.training.epochs):
        network.train()
        loss_sum = torch.zeros(())
        for batch in torch.randperm(len(y)).split(task.training.batch_size):
            loss = compute_loss(network(x.index_select(0, batch)), y.index_select(0, batch))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if task.training.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, task.training.clip_norm)
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach() * len(batch)
        assert loss_sum.isfinite()
        times.record()


def make_cnn_task(num_rows: int, threads: int) -> TrainingTask:
    """The network of fashion-mnist.yaml."""
    layout = Layout(kind="image", shape=(1, 28, 28))
    config = Cnn(kind="cnn", channels=(32, 64, 128), hidden=256, dropout=0.3)
    training = Training(epochs=4, batch_size=128, label_smoothing=0.05, num_threads=threads, device="cpu")
    return _make_task(
        Blueprint(config=config, layout=layout, num_outputs=10), training, torch.randn(num_rows, 1, 28, 28)
    )


def make_lstm_task(num_rows: int, threads: int) -> TrainingTask:
    """The network of beijing-pm25.yaml, with the same number of values per step."""
    layout = Layout(kind="sequence", shape=(24, 10))
    config = Rnn(kind="rnn", cell="lstm", hidden=64, highway=3, dropout=0.1)
    training = Training(epochs=4, batch_size=128, clip_norm=1.0, num_threads=threads, device="cpu")
    blueprint = Blueprint(config=config, layout=layout, task="regression", num_outputs=1)
    return _make_task(blueprint, training, torch.randn(num_rows, 24, 10))


def make_transformer_task(num_rows: int, threads: int) -> TrainingTask:
    """The network of clinc150.yaml, on sentences of 4 to 16 words."""
    layout = Layout(kind="tokens", shape=(32,), num_tokens=6000)
    config = Transformer(kind="transformer", width=128, num_layers=2, num_heads=4, dropout=0.2)
    training = Training(epochs=4, batch_size=64, clip_norm=1.0, label_smoothing=0.1, num_threads=threads, device="cpu")
    x = torch.randint(1, 6000, (num_rows, 32)).float()
    x[torch.arange(32) >= torch.randint(4, 17, (num_rows, 1))] = 0
    return _make_task(Blueprint(config=config, layout=layout, num_outputs=151), training, x)


def _make_task(blueprint: Blueprint, training: Training, x: torch.Tensor) -> TrainingTask:
    class_labels = torch.randint(0, blueprint.num_outputs, (len(x),))
    y = class_labels if blueprint.task == "classification" else torch.randn(len(x))
    return TrainingTask(blueprint, training, Examples(x, y, np.arange(len(x))))


# The number of rows is such that three epochs on one thread take about a second.
TASKS = {"cnn": (make_cnn_task, 2_560), "lstm": (make_lstm_task, 10_240), "transformer": (make_transformer_task, 2_560)}


def available_loops() -> dict[str, TrainingLoop]:
    """Returns the loops whose packages are installed, by name, and prints which are left out."""
    loops: dict[str, TrainingLoop] = {HAND_WRITTEN: train_by_hand, "Bloomery": train_by_bloomery}
    for name, create_loop in (("Lightning", peers.lightning_loop), ("Hugging Face", peers.hugging_face_loop)):
        try:
            loops[name] = create_loop()
        except ImportError as error:
            print(f"{name} is left out: {error}\n")
    return loops


class Throughput(NamedTuple):
    """Rows per second of wall-clock time, and of processor time."""

    wall: float
    processor: float


def measure_throughput(loop: TrainingLoop, task: TrainingTask) -> Throughput:
    """Measures all epochs except the first."""
    times = EpochTimes()
    loop(task, times)
    assert len(times) == task.training.epochs, f"found {len(times)} recorded epochs, expected {task.training.epochs}"
    num_rows = task.rows.num_rows * (task.training.epochs - 1)
    wall, processor = (last - first for first, last in zip(times[0], times[-1], strict=True))
    return Throughput(num_rows / wall, num_rows / processor)


def measure_in_turns(task: TrainingTask, loops: dict[str, TrainingLoop], rounds: int) -> dict[str, list[Throughput]]:
    """Measures all loops in each round. Each round starts with another loop, since the first has a cooler processor."""
    throughputs: dict[str, list[Throughput]] = {name: [] for name in loops}
    names = list(loops)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            throughputs[name].append(measure_throughput(loops[name], task))
    return throughputs


def format_row(network: str, name: str, throughputs: dict[str, list[Throughput]]) -> str:
    pairs = list(zip(throughputs[name], throughputs[HAND_WRITTEN], strict=True))
    rows_per_s = statistics.median(throughput.wall for throughput, _ in pairs)
    wall = _format_ratios([throughput.wall / baseline.wall for throughput, baseline in pairs])
    processor = _format_ratios([throughput.processor / baseline.processor for throughput, baseline in pairs])
    return f"| {network} | {name} | {rows_per_s:,.0f} | {wall} | {processor} |"


def _format_ratios(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the number of rows")
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="LOOP",
        help="names of loops to measure besides the hand-written one, such as Bloomery",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = {HAND_WRITTEN, *(options.only or ())}
    loops = {name: loop for name, loop in available_loops().items() if not options.only or name in names}
    print(
        f"{options.threads} thread(s) of {os.cpu_count()}, {options.rounds} rounds, {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}\n"
    )
    print("| network | loop | rows/s | relative to hand-written, wall-clock | relative to hand-written, processor |")
    print("| --- | --- | ---: | ---: | ---: |")
    for network in options.networks:
        make_task, num_rows = TASKS[network]
        torch.manual_seed(0)
        task = make_task(round(num_rows * options.scale), options.threads)
        throughputs = measure_in_turns(task, loops, options.rounds)
        for name in loops:
            print(format_row(network, name, throughputs), flush=True)


if __name__ == "__main__":
    main()
