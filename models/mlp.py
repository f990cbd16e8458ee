"""A multilayer perceptron for vectors of features; an input of another shape is read as one vector.

Source: Rumelhart, Hinton & Williams 1986 (hidden layers); Ioffe & Szegedy 2015 (batch normalisation).

Shapes: B rows, F features, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from models.config import Mlp


class Perceptron(nn.Module):
    """x float32 (B, F), or (B, ...) with F values in all -> logits_BK float32."""

    def __init__(self, config: Mlp, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        width = math.prod(input_shape)
        layers: list[nn.Module] = []
        for wider in config.hidden:
            layers.append(_layer(width, wider, config))
            width = wider
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_BF = x if x.dim() == 2 else x.flatten(1)
        return self.head(self.layers(x_BF))


def _layer(width: int, wider: int, config: Mlp) -> nn.Sequential:
    linear = nn.Linear(width, wider)
    norm = [nn.BatchNorm1d(wider)] if config.norm == "batch" else []
    return nn.Sequential(linear, *norm, nn.ReLU(), nn.Dropout(config.dropout))


def prunable(network: Perceptron) -> list[nn.Conv2d | nn.Linear]:
    """The layers whose outputs may go."""
    return [layer[0] for layer in network.layers]  # type: ignore[index]


def config_of(network: Perceptron, config: Mlp) -> Mlp:
    """`config` with the widths that `network` has now, so that a pruned network can be built again from its config."""
    return config.model_copy(update={"hidden": tuple(layer[0].out_features for layer in network.layers)})  # type: ignore[index]
