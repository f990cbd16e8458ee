"""A convolutional network for small images.

Source: LeCun et al. 1998 (convolution, pooling, dense layers); Ioffe & Szegedy 2015 (batch normalisation);
Simonyan & Zisserman 2015, "Very Deep Convolutional Networks" (several convolutions before each pooling); Lin et al.
2014, "Network In Network", section 3.2 (the mean over the image instead of a hidden layer); Springenberg et al. 2015,
"Striving for Simplicity: The All Convolutional Net", section 2 (a stride in place of pooling).

Shapes: B rows, C channels, H height, W width, F features, K outputs.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architecture import PrunableLayer
from bloomery.models.networks.config import Cnn
from bloomery.models.networks.layers.image_input import image_shape


class ConvNet(nn.Module):
    """x_BCHW float32 -> float32 (B, K).

    Every block halves height and width while both are at least 2: pooling rounds down, a stride rounds up.
    """

    def __init__(self, config: Cnn, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape(layout, "cnn")
        blocks: list[nn.Module] = []
        for number, (num_channels, convolutions) in enumerate(
            zip(config.channels, config.convolutions_of_blocks, strict=True)
        ):
            is_strided = number < config.strided
            factor = 2 if min(height, width) >= 2 else 1
            stride, pool = (factor, 1) if is_strided else (1, factor)
            blocks.append(
                _conv_block((channels, *(num_channels,) * convolutions), config.kernel_size, stride=stride, pool=pool)
            )
            height, width = (-(-side // factor) if is_strided else side // factor for side in (height, width))
            channels = num_channels
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(channels * height * width, config.hidden) if config.hidden else None
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden or channels, num_outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.blocks(x_BCHW)
        x_BF = x_BCHW.mean((2, 3)) if self.hidden is None else torch.relu(self.hidden(x_BCHW.flatten(1)))
        return self.head(self.dropout(x_BF))


def _conv_block(channels: tuple[int, ...], kernel_size: int, *, stride: int, pool: int) -> nn.Sequential:
    """Convolutions between successive numbers of `channels`; the first one has the stride."""
    layers: list[nn.Module] = []
    for number, (num_in, num_out) in enumerate(itertools.pairwise(channels)):
        factor = 1 if number else stride
        convolution = nn.Conv2d(num_in, num_out, kernel_size, stride=factor, padding=kernel_size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(num_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(pool)) if pool > 1 else nn.Sequential(*layers)


def prunable_layers(network: ConvNet) -> list[PrunableLayer]:
    """The layers with output channels or units that can be pruned."""
    convolutions: list[PrunableLayer] = [layer for layer in network.blocks.modules() if isinstance(layer, nn.Conv2d)]
    return convolutions if network.hidden is None else [*convolutions, network.hidden]


def pruned_config(network: ConvNet, config: Cnn) -> Cnn:
    """`config` with the widths of `network`, so that a pruned network can be rebuilt."""
    widths = tuple(block[0].out_channels for block in network.blocks)  # type: ignore[index]
    hidden = 0 if network.hidden is None else network.hidden.out_features
    return config.model_copy(update={"channels": widths, "hidden": hidden})


def build(config: Cnn, layout: Layout, num_outputs: int) -> ConvNet:
    return ConvNet(config, layout, num_outputs)
