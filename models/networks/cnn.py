"""A small convolutional network for images.

Source: LeCun et al. 1998 (the plan of convolution, pooling, dense); Ioffe & Szegedy 2015 (batch normalisation);
Simonyan & Zisserman 2015, "Very Deep Convolutional Networks" (several convolutions before each pooling); Lin et al.
2014, "Network In Network", section 3.2 (the mean over the image instead of a hidden layer).

Shapes: B rows, C channels, H height, W width, F features, K outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from data_contracts.layouts import Layout
from models.networks.config import Cnn
from models.networks.images import image_shape


class ConvNet(nn.Module):
    """x_BCHW float32 -> float32 (B, K).

    Every block halves height and width, rounding down, as long as both are at least 2.
    """

    def __init__(self, config: Cnn, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape(layout, "cnn")
        blocks: list[nn.Module] = []
        for wider in config.channels:
            blocks.append(_block(channels, wider, config, pool=min(height, width) >= 2))
            channels = wider
            if min(height, width) >= 2:
                height, width = height // 2, width // 2
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(channels * height * width, config.hidden) if config.hidden else None
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden or channels, num_outputs)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.blocks(x_BCHW)
        x_BF = x_BCHW.mean((2, 3)) if self.hidden is None else torch.relu(self.hidden(x_BCHW.flatten(1)))
        return self.head(self.dropout(x_BF))


def _block(channels: int, wider: int, config: Cnn, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(config.convolutions):
        given = wider if number else channels
        convolution = nn.Conv2d(given, wider, config.kernel_size, padding=config.kernel_size // 2, bias=False)
        layers += [convolution, nn.BatchNorm2d(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def prunable(network: ConvNet) -> list[nn.Module]:
    """The layers whose outputs may go."""
    convolutions: list[nn.Module] = [layer for layer in network.blocks.modules() if isinstance(layer, nn.Conv2d)]
    return convolutions if network.hidden is None else [*convolutions, network.hidden]


def config_of(network: ConvNet, config: Cnn) -> Cnn:
    """`config` with the widths that `network` has now, so that a pruned network can be built again from its config."""
    widths = tuple(block[0].out_channels for block in network.blocks)  # type: ignore[index]
    hidden = 0 if network.hidden is None else network.hidden.out_features
    return config.model_copy(update={"channels": widths, "hidden": hidden})


def build(config: Cnn, layout: Layout, num_outputs: int) -> ConvNet:
    return ConvNet(config, layout, num_outputs)
