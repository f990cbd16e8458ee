"""The processes that train one network together, and the rank of this one."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import nn


class ProcessGroup(NamedTuple):
    """`size` processes that divide the rows of each batch; this one is number `rank`."""

    rank: int = 0
    size: int = 1


SINGLE_PROCESS = ProcessGroup()


class RemoteModule(nn.Module):
    """A placeholder for a module that is in another process."""


def has_remote_modules(network: nn.Module) -> bool:
    """Whether some modules of the network are in other processes (pipeline parallelism)."""
    return any(isinstance(module, RemoteModule) for module in network.modules())


def all_reduce_sum(values: torch.Tensor, group: ProcessGroup) -> torch.Tensor:
    """The sum over all processes. Every process must call this, in the same order."""
    if group.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def exit_without_finalization() -> None:
    """When this process exits, it ends with code 0 before Python finalizes its objects. Call it after the last work.

    Threads of Gloo may still hold tensors then, even after the group is destroyed. Such a thread aborts a process that
    finalizes, and torchrun takes a finished training for a failed one. Source: pytorch/pytorch#179291.
    """
    atexit.register(_exit_now)


def _exit_now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
