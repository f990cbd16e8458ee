"""One network on several devices: copies of it, its shards, or its layers cut across.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (ddp); Rajbhandari et
al. 2020, "ZeRO" (fsdp); Shoeybi et al. 2019, "Megatron-LM", section 3 (tensor).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from data_contracts.errors import RecipeInvalid
from models.networks.config import Model
from models.training.config import Strategy
from models.training.world import ALONE, World


def shared_rows(strategy: Strategy) -> World:
    """How the processes of this group share the rows of a batch: with `tensor` all see all rows."""
    return ALONE if strategy == "tensor" else World(dist.get_rank(), dist.get_world_size())


def refuse_impossible(strategy: Strategy, model: Model, num_processes: int) -> None:
    """Raises RecipeInvalid if the network cannot be spread so."""
    if strategy != "tensor":
        return
    heads = getattr(model, "num_heads", None)
    if model.kind not in ("transformer", "gpt") or heads is None or heads % num_processes:
        what = f"{heads} heads for {num_processes} processes" if heads else f"a network of kind {model.kind}"
        raise RecipeInvalid(
            f"`strategy: tensor` with {what}",
            required="a transformer or gpt whose heads the processes can share evenly",
            where="the recipe's training.strategy",
            remedy="use `strategy: fsdp`, or change devices or num_heads",
        )


def spread(network: nn.Module, strategy: Strategy, device: torch.device) -> nn.Module:
    """The network to call in training: its gradients are those of the whole batch, in every process.

    With `fsdp` and `tensor` the parameters of `network` itself become shards.
    """
    if strategy == "ddp":
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    if strategy == "fsdp":
        for block in _blocks(network):
            fully_shard(block, mesh=mesh)
        fully_shard(network, mesh=mesh)
        return network
    for block in _blocks(network):
        parallelize_module(block, mesh, _cuts(block))
    return network


def whole_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """All weights in one piece on the processor, in the first process; nothing in the others."""
    state: dict[str, Any] = get_model_state_dict(
        network, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The parts that are sharded one by one, so that only one of them is whole at a time."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return list(lists[0]) if lists else []


def _cuts(block: nn.Module) -> dict[str, ParallelStyle]:
    """Which of a block's linear maps are cut by their outputs, and which by their inputs."""
    names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    return {
        name: RowwiseParallel() if name.rsplit(".", 1)[-1] in ("out", "down") else ColwiseParallel() for name in names
    }
