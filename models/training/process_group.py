"""The processes that train one network together, as one of them sees it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn


class ProcessGroup(NamedTuple):
    """`size` processes that share the rows of each batch, of which this is number `rank`."""

    rank: int = 0
    size: int = 1


SINGLE_PROCESS = ProcessGroup()


class RemoteModule(nn.Module):
    """Stands where another process holds that part of the network."""


def has_remote_modules(network: nn.Module) -> bool:
    """Whether each process holds other parameters of the network."""
    return any(isinstance(module, RemoteModule) for module in network.modules())


def all_reduce_sum(values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """The sum over all processes, in each of them. Every process must call this, in the same order."""
    if group.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values
