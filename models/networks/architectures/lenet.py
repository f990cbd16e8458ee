"""LeNet-5 as used in papers on compression: 431,080 parameters for 28 x 28 pixels.

Source: LeCun et al. 1998, "Gradient-Based Learning Applied to Document Recognition", section II; Han et al. 2015,
"Learning both Weights and Connections for Efficient Neural Networks", table 3 (this variant, with max pooling).

Shapes: B rows, C channels, H height, W width, F features, K outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architecture import PrunableLayer
from bloomery.models.networks.config import LeNet
from bloomery.models.networks.layers.image_input import image_shape

_KERNEL = 5
_MIN_SIDE = 16  # one pixel remains after two unpadded convolutions, each followed by 2 x 2 pooling


class LeNet5(nn.Module):
    """x_BCHW float32 of at least 16 x 16 pixels -> float32 (B, K)."""

    def __init__(self, config: LeNet, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape(layout, "lenet", min_side=_MIN_SIDE)
        first, second = config.channels
        self.first = nn.Conv2d(channels, first, _KERNEL)
        self.second = nn.Conv2d(first, second, _KERNEL)
        self.hidden = nn.Linear(second * _side_after(height) * _side_after(width), config.hidden)
        self.head = nn.Linear(config.hidden, num_outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = F.max_pool2d(torch.relu(self.first(x_BCHW)), 2)
        x_BCHW = F.max_pool2d(torch.relu(self.second(x_BCHW)), 2)
        return self.head(torch.relu(self.hidden(x_BCHW.flatten(1))))


def _side_after(side: int) -> int:
    for _ in range(2):
        side = (side - _KERNEL + 1) // 2
    return side


def prunable_layers(network: LeNet5) -> list[PrunableLayer]:
    """The layers with output channels or units that can be pruned."""
    return [network.first, network.second, network.hidden]


def pruned_config(network: LeNet5, config: LeNet) -> LeNet:
    """`config` with the widths of `network`, so that a pruned network can be rebuilt."""
    channels = (network.first.out_channels, network.second.out_channels)
    return config.model_copy(update={"channels": channels, "hidden": network.hidden.out_features})


def build(config: LeNet, layout: Layout, num_outputs: int) -> LeNet5:
    return LeNet5(config, layout, num_outputs)
