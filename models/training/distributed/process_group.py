"""The processes that train one network together, as one of them sees it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn


class World(NamedTuple):
    """`size` processes that share the rows of each batch, of which this is number `rank`."""

    rank: int = 0
    size: int = 1


ALONE = World()


class Elsewhere(nn.Module):
    """Stands where another process holds that part of the network."""


def is_cut(network: nn.Module) -> bool:
    """Whether each process holds other parameters of the network."""
    return any(isinstance(module, Elsewhere) for module in network.modules())


def added_up(figures: torch.Tensor, world: World) -> torch.Tensor:
    """The sum over all processes, in each of them. Every process must call this, in the same order."""
    if world.size > 1:
        figures = figures.clone()
        dist.all_reduce(figures)
    return figures
