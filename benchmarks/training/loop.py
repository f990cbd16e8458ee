"""Rows a second of training: ours, a loop written by hand, Lightning's Trainer and Hugging Face's Trainer, in turns.

    python benchmarks/training/loop.py [--threads 1] [--rounds 7] [--networks cnn lstm transformer] [--scale 1.0]

All train the same networks from the same first weights on the same rows in memory, with the same loss, AdamW, one-cycle
rate and limit of the gradients. Ours is `bloomery.tasks.train.fit.fit_network` as the train stage calls it, with its
checks of the loss, its checkpointer and fixed algorithms, and with a validation part of two rows, which nobody
else has. Every
trainer has the quickest settings known of it: rows fetched a batch at a time, no progress bar, no log, no checkpoint.
Each round every one trains anew; its first epoch is not counted, so that nobody's preparations are.

Ratios are of one round; their median and range over the rounds are told, of the clock's time and of the processor's,
which other users of the machine disturb less. Lightning and Hugging Face are left out where they are not installed:

    pip install --no-deps --target PEERS lightning lightning-utilities torchmetrics accelerate datasets dill xxhash \
        multiprocess
    PYTHONPATH=.:PEERS python benchmarks/training/loop.py
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Rnn, Transformer
from bloomery.models.training.checkpointing import Checkpointer
from bloomery.models.training.config import Checkpoints, Training
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.loop import TrainingHooks
from bloomery.models.training.optimization.loss import BatchLoss, build_loss
from bloomery.tasks.infrastructure.device import configure_processor
from bloomery.tasks.train import fit

HAND = "by hand"


class Task(NamedTuple):
    """What everyone is given."""

    blueprint: Blueprint
    training: Training
    rows: Examples

    @property
    def num_steps(self) -> int:
        return self.training.epochs * -(-self.rows.num_rows // self.training.batch_size)

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        network = build_network(self.blueprint)
        # Quicker on processors too, so everyone has it.
        is_image = self.blueprint.layout.kind == "image"
        return network.to(memory_format=torch.channels_last) if is_image else network  # type: ignore[call-overload]

    def loss(self) -> BatchLoss:
        """The mean over the rows of a batch."""
        of_rows = build_loss(self.training, self.rows.y)
        return lambda outputs, y: of_rows(outputs, y) / len(y)

    def optimizer(self, network: nn.Module) -> torch.optim.AdamW:
        rate, decay = self.training.learning_rate, self.training.weight_decay
        return torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=decay, fused=True)

    def schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, self.training.learning_rate, self.num_steps)


class Times(list[tuple[float, float]]):
    """The clock's and the processor's time at the end of each epoch."""

    def note(self, *_: object) -> None:
        self.append((time.perf_counter(), time.process_time()))


Way = Callable[[Task, Times], None]


def ours(task: Task, times: Times) -> None:
    two = Examples(task.rows.x[:2], task.rows.y[:2], task.rows.key[:2])
    with tempfile.TemporaryDirectory() as folder:
        configure_processor(task.training)
        checkpointer = Checkpointer(Path(folder), Checkpoints())
        fit.fit_network(
            fit.TrainingSplits(task.rows, two),
            task.blueprint,
            task.training,
            hooks=TrainingHooks(on_epoch=times.note, load=checkpointer.load, save=checkpointer.save),
        )
    torch.use_deterministic_algorithms(False)


def by_hand(task: Task, times: Times) -> None:
    network, loss_of_batch, (x, y, _) = task.network(), task.loss(), task.rows
    optimizer = task.optimizer(network)
    schedule = task.schedule(optimizer)
    parameters = list(network.parameters())
    for _ in range(task.training.epochs):
        network.train()
        loss_sum = torch.zeros(())
        for chosen in torch.randperm(len(y)).split(task.training.batch_size):
            loss = loss_of_batch(network(x.index_select(0, chosen)), y.index_select(0, chosen))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if task.training.clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, task.training.clip_norm)
            optimizer.step()
            schedule.step()
            loss_sum += loss.detach() * len(chosen)
        assert loss_sum.isfinite()
        times.note()


def cnn(num_rows: int, threads: int) -> Task:
    """The network of fashion-mnist.yaml."""
    layout = Layout(kind="image", shape=(1, 28, 28))
    config = Cnn(kind="cnn", channels=(32, 64, 128), hidden=256, dropout=0.3)
    training = Training(epochs=4, batch_size=128, label_smoothing=0.05, num_threads=threads, device="cpu")
    return _task(Blueprint(config=config, layout=layout, num_outputs=10), training, torch.randn(num_rows, 1, 28, 28))


def lstm(num_rows: int, threads: int) -> Task:
    """The network of beijing-pm25.yaml, on as many values an hour."""
    layout = Layout(kind="sequence", shape=(24, 10))
    config = Rnn(kind="rnn", cell="lstm", hidden=64, highway=3, dropout=0.1)
    training = Training(epochs=4, batch_size=128, clip_norm=1.0, num_threads=threads, device="cpu")
    blueprint = Blueprint(config=config, layout=layout, task="regression", num_outputs=1)
    return _task(blueprint, training, torch.randn(num_rows, 24, 10))


def transformer(num_rows: int, threads: int) -> Task:
    """The network of clinc150.yaml, on sentences of 4 to 16 words."""
    layout = Layout(kind="tokens", shape=(32,), num_tokens=6000)
    config = Transformer(kind="transformer", width=128, num_layers=2, num_heads=4, dropout=0.2)
    training = Training(epochs=4, batch_size=64, clip_norm=1.0, label_smoothing=0.1, num_threads=threads, device="cpu")
    x = torch.randint(1, 6000, (num_rows, 32)).float()
    x[torch.arange(32) >= torch.randint(4, 17, (num_rows, 1))] = 0
    return _task(Blueprint(config=config, layout=layout, num_outputs=151), training, x)


def _task(blueprint: Blueprint, training: Training, x: torch.Tensor) -> Task:
    of_classes = torch.randint(0, blueprint.num_outputs, (len(x),))
    y = of_classes if blueprint.task == "classification" else torch.randn(len(x))
    return Task(blueprint, training, Examples(x, y, np.arange(len(x))))


# With rows for about a second of three epochs on one thread.
TASKS = {"cnn": (cnn, 2_560), "lstm": (lstm, 10_240), "transformer": (transformer, 2_560)}


def ways() -> dict[str, Way]:
    """Everyone who is installed, by name."""
    found: dict[str, Way] = {HAND: by_hand, "ours": ours}
    for name, module in (("Lightning", "lightning_trainer"), ("Hugging Face", "huggingface_trainer")):
        try:
            found[name] = __import__("peers").__dict__[module]()
        except ImportError as failure:
            print(f"{name} is left out: {failure}\n")
    return found


class Pace(NamedTuple):
    """Rows a second, by the clock and by the processor's time."""

    wall: float
    processor: float


def pace(way: Way, task: Task) -> Pace:
    """Of all epochs but the first."""
    times = Times()
    way(task, times)
    assert len(times) == task.training.epochs, f"{len(times)} epochs of {task.training.epochs}"
    num_rows = task.rows.num_rows * (task.training.epochs - 1)
    wall, processor = (last - first for first, last in zip(times[0], times[-1], strict=True))
    return Pace(num_rows / wall, num_rows / processor)


def in_turns(task: Task, rivals: dict[str, Way], rounds: int) -> dict[str, list[Pace]]:
    """Each round begins with another one, for whoever comes first has the cooler machine."""
    paces: dict[str, list[Pace]] = {name: [] for name in rivals}
    names = list(rivals)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            paces[name].append(pace(rivals[name], task))
    return paces


def line(network: str, name: str, all_paces: dict[str, list[Pace]]) -> str:
    mine, hand = all_paces[name], all_paces[HAND]
    rows = f"{statistics.median(one.wall for one in mine):,.0f}"
    by_clock = _ratio([one.wall / other.wall for one, other in zip(mine, hand, strict=True)])
    by_processor = _ratio([one.processor / other.processor for one, other in zip(mine, hand, strict=True)])
    return f"| {network} | {name} | {rows} | {by_clock} | {by_processor} |"


def _ratio(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--threads", type=int, default=1)
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--networks", nargs="+", choices=TASKS, default=list(TASKS))
    asked.add_argument("--scale", type=float, default=1.0, help="of the number of rows")
    asked.add_argument("--only", nargs="+", help="the ways to take besides the loop by hand")
    chosen = asked.parse_args()
    torch.set_num_threads(chosen.threads)
    rivals = {name: way for name, way in ways().items() if name == HAND or not chosen.only or name in chosen.only}
    print(
        f"{chosen.threads} thread(s) of {os.cpu_count()}, {chosen.rounds} rounds, {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}\n"
    )
    print("| network | loop | rows/s | of by hand, by the clock | of by hand, by the processor's time |")
    print("| --- | --- | ---: | ---: | ---: |")
    for network in chosen.networks:
        make, num_rows = TASKS[network]
        torch.manual_seed(0)
        task = make(round(num_rows * chosen.scale), chosen.threads)
        paces = in_turns(task, rivals, chosen.rounds)
        for name in rivals:
            print(line(network, name, paces), flush=True)


if __name__ == "__main__":
    main()
