"""A multilayer perceptron for tables; inputs of other shapes are flattened.

Source: Rumelhart, Hinton & Williams 1986 (hidden layers); Ioffe & Szegedy 2015 (batch normalisation); Guo & Berkhahn
2016, "Entity Embeddings of Categorical Variables" (categories as vectors); Gorishniy et al. 2022, "On Embeddings for
Numerical Features in Tabular Deep Learning", section 3.3 (numbers as vectors).

Shapes: B rows, F features, N numbers, Q frequencies, W width of a number's vector, C categories, K outputs.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architecture import PrunableLayer
from bloomery.models.networks.config import Mlp, Periodic
from bloomery.models.networks.layers.tabular_embedding import TabularInput

_MAX_EMBEDDING_WIDTH = 50


class Perceptron(nn.Module):
    """x float32 (B, F), or (B, ...) with F values -> float32 (B, K)."""

    def __init__(self, config: Mlp, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        self.columns = TabularInput(layout) if layout.categories else None
        counts = () if self.columns is None else self.columns.counts
        widths = [config.embedding or embedding_width(count) for count in counts]
        self.embeddings = nn.ModuleList(map(nn.Embedding, counts, widths))
        for embedding, embedding_size in zip(self.embeddings, widths, strict=True):
            nn.init.uniform_(embedding.weight, -(embedding_size**-0.5), embedding_size**-0.5)  # type: ignore[arg-type]
        num_numbers = layout.num_values if self.columns is None else self.columns.num_numbers
        self.waves = (
            PeriodicEmbedding(config.periodic, num_numbers) if config.periodic is not None and num_numbers else None
        )
        width = sum(widths) + num_numbers * (1 if self.waves is None else self.waves.width)
        layers: list[nn.Module] = []
        for num_units in config.hidden:
            layers.append(_hidden_layer(width, num_units, config))
            width = num_units
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x_BF = x if x.dim() == 2 else x.flatten(1)
        rows: list[torch.Tensor] = []
        if self.columns is not None:
            x_BF, codes_BC = self.columns(x_BF)
            rows = [embedding(codes_BC[:, position]) for position, embedding in enumerate(self.embeddings)]
        if self.waves is not None:
            x_BF = self.waves(x_BF)
        return self.head(self.layers(torch.cat([x_BF, *rows], dim=1) if rows else x_BF))


class PeriodicEmbedding(nn.Module):
    """x_BN float32 -> float32 (B, N * W): a linear map of each number's sines and cosines.

    The linear map is shared by all columns; frequencies are per column.
    """

    def __init__(self, config: Periodic, num_numbers: int) -> None:
        super().__init__()
        self.width = config.width
        self.frequencies_NQ = nn.Parameter(torch.randn(num_numbers, config.frequencies) * config.spread)
        self.linear = nn.Linear(2 * config.frequencies, config.width)

    def forward(self, x_BN: torch.Tensor) -> torch.Tensor:
        angles_BNQ = 2 * math.pi * x_BN.unsqueeze(-1) * self.frequencies_NQ
        waves_BNW = self.linear(torch.cat([angles_BNQ.sin(), angles_BNQ.cos()], dim=-1))
        return torch.relu(waves_BNW).flatten(1)


def embedding_width(count: int) -> int:
    """The width of an embedding of `count` categories; it grows with their number, up to 50.

    Source: the rule of thumb of fastai (Howard & Gugger 2020, "fastai: A Layered API for Deep Learning").
    """
    return min(_MAX_EMBEDDING_WIDTH, round(1.6 * count**0.56))


def _hidden_layer(num_inputs: int, num_units: int, config: Mlp) -> nn.Sequential:
    linear = nn.Linear(num_inputs, num_units)
    norm = [nn.BatchNorm1d(num_units)] if config.norm == "batch" else []
    return nn.Sequential(linear, *norm, nn.ReLU(), nn.Dropout(config.dropout))


def prunable_layers(network: Perceptron) -> list[PrunableLayer]:
    """The layers with output units that can be pruned."""
    return [layer[0] for layer in network.layers]  # type: ignore[index]


def pruned_config(network: Perceptron, config: Mlp) -> Mlp:
    """`config` with the widths of `network`, so that a pruned network can be rebuilt."""
    return config.model_copy(update={"hidden": tuple(layer[0].out_features for layer in network.layers)})  # type: ignore[index]


def build(config: Mlp, layout: Layout, num_outputs: int) -> Perceptron:
    return Perceptron(config, layout, num_outputs)
