"""Tiny pretrained networks with random weights, and rows for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.pretrained_config import Pretrained

NUM_OUTPUTS = 4
LENGTH = 12


class TinyNetwork(NamedTuple):
    """A pretrained network in evaluation mode, the blueprint that rebuilds it, and rows that it reads."""

    network: PretrainedNetwork
    blueprint: Blueprint
    x: torch.Tensor


def build_tiny(folder: Path, **options: Any) -> TinyNetwork:
    """The network of the checkpoint in `folder`, for rows of tokens or images."""
    document = json.loads((folder / "config.json").read_text())
    config = Pretrained(
        kind="pretrained",
        checkpoint=str(folder),
        resolved=Checkpoint(reference=str(folder), folder=str(folder), files={}),
        config=document,
        **options,
    )
    if "vocab_size" in document:
        layout = Layout(kind="tokens", shape=(LENGTH,), num_tokens=document["vocab_size"] + 1)
        x = random_tokens(40, document["vocab_size"])
    else:
        layout = Layout(kind="image", shape=(document["num_channels"], document["image_size"], document["image_size"]))
        x = torch.randn(40, *layout.shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)  # of the head
    blueprint = Blueprint(config=config, layout=layout, num_outputs=NUM_OUTPUTS)
    network = build_network(blueprint)
    assert isinstance(network, PretrainedNetwork)
    return TinyNetwork(network.eval(), blueprint, x)


def random_tokens(num_rows: int, vocabulary_size: int) -> torch.Tensor:
    """Rows of ids plus 1 of half of the vocabulary, with padding at the end."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, vocabulary_size // 2, (num_rows, LENGTH), generator=generator) * 2 + 1
    lengths = torch.randint(1, LENGTH + 1, (num_rows, 1), generator=generator)
    return torch.where(torch.arange(LENGTH) < lengths, x, 0).float()
