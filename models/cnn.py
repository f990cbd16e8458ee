"""A small convolutional network for images.

Source: LeCun et al. 1998 (the plan of convolution, pooling, dense); Ioffe & Szegedy 2015 (batch normalisation).

Shapes: B rows, C channels, H height, W width, F flattened features, K classes.
"""

from __future__ import annotations

import torch
from torch import nn

from models.config import Cnn


class ConvNet(nn.Module):
    """x_BCHW float32 -> logits_BK float32.

    Every block halves height and width, rounding down, as long as both are at least 2.
    """

    def __init__(self, config: Cnn, input_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, height, width = input_shape
        blocks: list[nn.Module] = []
        for wider in config.channels:
            blocks.append(_block(channels, wider, config.kernel_size, pool=min(height, width) >= 2))
            channels = wider
            if min(height, width) >= 2:
                height, width = height // 2, width // 2
        self.blocks = nn.Sequential(*blocks)
        self.hidden = nn.Linear(channels * height * width, config.hidden)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, num_classes)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        x_BF = self.blocks(x_BCHW).flatten(1)
        return self.head(self.dropout(torch.relu(self.hidden(x_BF))))


def _block(channels: int, wider: int, kernel_size: int, *, pool: bool) -> nn.Sequential:
    convolution = nn.Conv2d(channels, wider, kernel_size, padding=kernel_size // 2, bias=False)
    layers = [convolution, nn.BatchNorm2d(wider), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


def prunable(network: ConvNet) -> list[nn.Conv2d | nn.Linear]:
    """The layers whose outputs may go."""
    return [*(block[0] for block in network.blocks), network.hidden]  # type: ignore[index]


def config_of(network: ConvNet, config: Cnn) -> Cnn:
    """`config` with the widths that `network` has now, so that a pruned network can be built again from its config."""
    widths = tuple(block[0].out_channels for block in network.blocks)  # type: ignore[index]
    return config.model_copy(update={"channels": widths, "hidden": network.hidden.out_features})
