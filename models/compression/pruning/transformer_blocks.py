"""Prunes hidden units, heads and whole layers of a Transformer.

Shapes: N heads, H hidden units of a feed-forward layer.
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
    blocks: nn.ModuleList,
    config: ConfigT,
    ratio: float,
    importance: ImportanceFunction,
    structures: Sequence[Structure],
) -> ConfigT:
    """Remove the `ratio` of the least important of each of the `structures` from `blocks`, at most all but one.

    Layers are removed first, by the importance of all their weights. Each remaining layer loses the same number of its
    own heads and hidden units. The width of the residual stream stays.

    Returns:
        A config that builds blocks of this shape.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 2 (heads by their importance); Men
    et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You Expect" (whole layers).
    """
    if "layers" in structures:
        importances = torch.stack([total_importance(block, importance) for block in blocks.children()])
        kept_layers = set(most_important(importances, ratio).tolist())
        for number in reversed(range(len(blocks))):
            if number not in kept_layers:
                del blocks[number]
        config = config.model_copy(update={"num_layers": len(blocks)})
    remaining = [block for block in blocks.children() if isinstance(block, TransformerBlock)]
    if "heads" in structures:
        heads = attention_heads(config)
        for block in remaining:
            num_left = _prune_heads(block.attention, heads.width, ratio, importance)
        config = config.model_copy(update={"num_heads": num_left, "head_width": heads.width})
    if "units" in structures:
        for block in remaining:
            num_left = _prune_hidden(block, ratio, importance)
        config = config.model_copy(update={"feed_forward": num_left / config.width})
    return config


def total_importance(module: nn.Module, importance: ImportanceFunction) -> torch.Tensor:
    return torch.stack([importance(weight).sum() for weight in module.parameters()]).sum()


def most_important(importances: torch.Tensor, ratio: float) -> torch.Tensor:
    """Positions of what stays after `ratio` is removed, in order."""
    return importances.topk(max(len(importances) - round(len(importances) * ratio), 1)).indices.sort().values


def _prune_heads(attention: Attention, head_width: int, ratio: float, importance: ImportanceFunction) -> int:
    """Remove heads in place; returns how many are left."""
    projections = [layer for layer in (attention.query, attention.key, attention.value) if isinstance(layer, nn.Linear)]
    importance_N = importance(attention.out.weight).unflatten(1, (-1, head_width)).sum((0, 2))
    for layer in projections:
        importance_N = importance_N + importance(layer.weight).unflatten(0, (-1, head_width)).sum((1, 2))
        importance_N = importance_N + importance(layer.bias).unflatten(0, (-1, head_width)).sum(1)
    kept_N = most_important(importance_N, ratio)
    rows = (kept_N[:, None] * head_width + torch.arange(head_width)).flatten()
    for layer in projections:
        keep_outputs(layer, rows)
    keep_inputs(attention.out, rows)
    return len(kept_N)


def _prune_hidden(block: TransformerBlock, ratio: float, importance: ImportanceFunction) -> int:
    """Remove hidden units in place, by their incoming and outgoing weights; returns how many are left."""
    up, down = block.up, block.down
    importance_H = importance(up.weight).sum(1) + importance(up.bias) + importance(down.weight).sum(0)
    kept_H = most_important(importance_H, ratio)
    keep_outputs(up, kept_H)
    keep_inputs(down, kept_H)
    return len(kept_H)


def keep_outputs(layer: nn.Linear | nn.Conv2d, rows: torch.Tensor) -> None:
    """Remove all other outputs in place."""
    layer.weight = nn.Parameter(layer.weight.data[rows])
    if layer.bias is not None:
        layer.bias = nn.Parameter(layer.bias.data[rows])
    setattr(layer, "out_features" if isinstance(layer, nn.Linear) else "out_channels", len(rows))


def keep_inputs(layer: nn.Linear | nn.Conv2d, columns: torch.Tensor) -> None:
    """Remove all other inputs in place."""
    layer.weight = nn.Parameter(layer.weight.data[:, columns])
    setattr(layer, "in_features" if isinstance(layer, nn.Linear) else "in_channels", len(columns))


def keep_channels(norm: nn.BatchNorm2d, channels: torch.Tensor) -> None:
    """Remove all other channels in place."""
    norm.weight, norm.bias = (nn.Parameter(weight.data[channels]) for weight in (norm.weight, norm.bias))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean, norm.running_var = norm.running_mean[channels], norm.running_var[channels]
    norm.num_features = len(channels)
