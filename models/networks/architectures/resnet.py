"""Residual networks for images.

Source: He et al. 2015, "Deep Residual Learning for Image Recognition": table 1 (stages), section 3.3 (shortcuts),
section 4.2 (the stem of small images); He et al. 2015, "Delving Deep into Rectifiers", section 2.2 (initialisation);
Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 5.1 (blocks initialised as the identity). The stride of a
bottleneck is in its 3 x 3 convolution, as in most implementations, unlike the paper.

Shapes: B rows, C channels, H height, W width, K outputs.
"""

from __future__ import annotations

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architecture import PrunableLayer
from bloomery.models.networks.config import ResNet
from bloomery.models.networks.layers.image_input import image_shape

_NUM_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}
_HAS_BOTTLENECKS = {18: False, 34: False, 50: True}
_LARGE_SIDE = 96  # pixels of the shorter side from which `stem: auto` is `large`


class ResidualNetwork(nn.Module):
    """x_BCHW float32, of any size -> float32 (B, K)."""

    def __init__(self, config: ResNet, layout: Layout, num_outputs: int) -> None:
        super().__init__()
        channels, height, width = image_shape(layout, "resnet")
        is_large = config.stem == "large" or (config.stem == "auto" and min(height, width) >= _LARGE_SIDE)
        self.stem = _stem(channels, config.width, is_large=is_large)
        outer, inner = stage_widths(config)
        is_bottleneck = _HAS_BOTTLENECKS[config.depth]
        channels, blocks = config.width, list[ResidualBlock]()
        for stage, num_blocks in enumerate(_NUM_BLOCKS[config.depth]):
            for number in range(num_blocks):
                # Not decided by widths alone: pruning may make those of a bottleneck equal by chance.
                projects = number == 0 and (stage > 0 or is_bottleneck or channels != outer[stage])
                stride = 2 if stage and not number else 1
                make = _bottleneck_layers if is_bottleneck else _basic_layers
                layers = make(channels, inner[stage], outer[stage], stride)
                blocks.append(
                    ResidualBlock(layers, _convolution(channels, outer[stage], 1, stride) if projects else [])
                )
                channels = outer[stage]
        self.blocks = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(channels, num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if config.zero_init:
            for block in blocks:
                nn.init.zeros_(block.layers[-1].weight)  # type: ignore[arg-type]

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.blocks(self.stem(x_BCHW)).mean((2, 3))))


class ResidualBlock(nn.Module):
    """A residual block; `projection` adapts the shape of the shortcut if needed."""

    def __init__(self, layers: list[nn.Module], projection: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(*projection)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layers(x_BCHW) + self.shortcut(x_BCHW))


def _basic_layers(channels: int, inner: int, outer: int, stride: int) -> list[nn.Module]:
    return [*_convolution(channels, inner, 3, stride), nn.ReLU(), *_convolution(inner, outer, 3)]


def _bottleneck_layers(channels: int, inner: int, outer: int, stride: int) -> list[nn.Module]:
    narrow = [*_convolution(channels, inner, 1), nn.ReLU(), *_convolution(inner, inner, 3, stride), nn.ReLU()]
    return [*narrow, *_convolution(inner, outer, 1)]


def _convolution(channels: int, num_outputs: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    padding = kernel_size // 2
    return [nn.Conv2d(channels, num_outputs, kernel_size, stride, padding, bias=False), nn.BatchNorm2d(num_outputs)]


def _stem(channels: int, width: int, *, is_large: bool) -> nn.Sequential:
    if is_large:
        return nn.Sequential(*_convolution(channels, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, padding=1))
    return nn.Sequential(*_convolution(channels, width, 3), nn.ReLU())


def stage_widths(config: ResNet) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Channels after each stage, and inside the blocks of each stage."""
    inner = config.inner or tuple(config.width * 2**stage for stage in range(4))
    expansion = 4 if _HAS_BOTTLENECKS[config.depth] else 1
    return config.stages or tuple(expansion * config.width * 2**stage for stage in range(4)), inner


def prunable_layers(network: ResidualNetwork) -> list[PrunableLayer]:
    """The layers with output channels that can be pruned; those that are added are pruned together."""
    return [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]


def pruned_config(network: ResidualNetwork, config: ResNet) -> ResNet:
    """`config` with the widths of `network`, so that a pruned network can be rebuilt."""
    num_blocks = _NUM_BLOCKS[config.depth]
    firsts = [network.blocks[sum(num_blocks[:stage])].layers for stage in range(4)]
    stem: nn.Conv2d = network.stem[0]  # type: ignore[assignment]
    stages = tuple(layers[-1].num_features for layers in firsts)  # type: ignore[union-attr, index]
    inner = tuple(layers[0].out_channels for layers in firsts)  # type: ignore[union-attr, index]
    return config.model_copy(update={"width": stem.out_channels, "stages": stages, "inner": inner})


def build(config: ResNet, layout: Layout, num_outputs: int) -> ResidualNetwork:
    return ResidualNetwork(config, layout, num_outputs)
