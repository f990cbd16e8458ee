"""Hidden units, heads and whole layers that leave a Transformer.

Shapes: N heads, D width of a head, H hidden units of a feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import nn

from bloomery.models.compression.config import Structure
from bloomery.models.compression.pruning.importance import ImportanceFunction
from bloomery.models.networks.config import Gpt, Transformer
from bloomery.models.networks.layers.attention import Attention, TransformerBlock, attention_heads

ConfigT = TypeVar("ConfigT", Transformer, Gpt)


def prune_transformer_blocks(
    blocks: nn.ModuleList, config: ConfigT, share: float, measure: ImportanceFunction, parts: Sequence[Structure]
) -> ConfigT:
    """Afterwards `blocks` have lost the `share` of each of the `parts` that matters least, at most all but one.

    Layers go first: those whose weights matter least as a whole. Each layer left loses as many heads, each its own, and
    as many hidden units. What is added to what came in keeps its width.

    Returns:
        A config that builds blocks of this shape.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 2 (heads by their importance); Men
    et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (whole layers).
    """
    if "layers" in parts:
        matter = torch.stack([_of(block, measure) for block in blocks.children()])
        kept = set(_kept(matter, share).tolist())
        for number in reversed(range(len(blocks))):
            if number not in kept:
                del blocks[number]
        config = config.model_copy(update={"num_layers": len(blocks)})
    left = [block for block in blocks.children() if isinstance(block, TransformerBlock)]
    if "heads" in parts:
        heads = attention_heads(config)
        for block in left:
            num = _without_heads(block.attention, heads.width, share, measure)
        config = config.model_copy(update={"num_heads": num, "head_width": heads.width})
    if "units" in parts:
        for block in left:
            num = _without_hidden(block, share, measure)
        config = config.model_copy(update={"feed_forward": num / config.width})
    return config


def _of(module: nn.Module, measure: ImportanceFunction) -> torch.Tensor:
    return torch.stack([measure(weight).sum() for weight in module.parameters()]).sum()


def _kept(matter: torch.Tensor, share: float) -> torch.Tensor:
    """The places, in order, of what matters most when `share` leaves."""
    return matter.topk(max(len(matter) - round(len(matter) * share), 1)).indices.sort().values


def _without_heads(attention: Attention, head_width: int, share: float, measure: ImportanceFunction) -> int:
    """How many heads are left."""
    projections = [layer for layer in (attention.query, attention.key, attention.value) if isinstance(layer, nn.Linear)]
    matter_N = measure(attention.out.weight).unflatten(1, (-1, head_width)).sum((0, 2))
    for layer in projections:
        matter_N = matter_N + measure(layer.weight).unflatten(0, (-1, head_width)).sum((1, 2))
        matter_N = matter_N + measure(layer.bias).unflatten(0, (-1, head_width)).sum(1)
    kept_N = _kept(matter_N, share)
    rows = (kept_N[:, None] * head_width + torch.arange(head_width)).flatten()
    for layer in projections:
        _keep_outputs(layer, rows)
    _keep_inputs(attention.out, rows)
    return len(kept_N)


def _without_hidden(block: TransformerBlock, share: float, measure: ImportanceFunction) -> int:
    """How many hidden units are left. A unit matters as much as what leads to it and what leads from it together."""
    up, down = block.up, block.down
    matter_H = measure(up.weight).sum(1) + measure(up.bias) + measure(down.weight).sum(0)
    kept_H = _kept(matter_H, share)
    _keep_outputs(up, kept_H)
    _keep_inputs(down, kept_H)
    return len(kept_H)


def _keep_outputs(layer: nn.Linear, rows: torch.Tensor) -> None:
    layer.weight, layer.bias = nn.Parameter(layer.weight.data[rows]), nn.Parameter(layer.bias.data[rows])
    layer.out_features = len(rows)


def _keep_inputs(layer: nn.Linear, columns: torch.Tensor) -> None:
    layer.weight = nn.Parameter(layer.weight.data[:, columns])
    layer.in_features = len(columns)
