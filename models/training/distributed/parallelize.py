"""Distributes one network over several devices: replicas, shards, tensor parallelism or a pipeline.

Source: Li et al. 2020, "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (ddp); Rajbhandari et
al. 2020, "ZeRO" (fsdp); Shoeybi et al. 2019, "Megatron-LM", section 3 (tensor); pipeline_parallel.py for pipelines.
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

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.networks.config import AttentionConfig, Model
from bloomery.models.training.config import Loop, Strategy, Training
from bloomery.models.training.distributed.pipeline_parallel import num_microbatches, pipeline_learner
from bloomery.models.training.optimization.learner import Learner, create_learner
from bloomery.models.training.process_group import SINGLE_PROCESS, ProcessGroup, has_remote_modules


def data_parallel_group(strategy: Strategy) -> ProcessGroup:
    """The processes that divide the rows of a batch. With tensor and pipeline parallelism, all see all rows."""
    return (
        SINGLE_PROCESS if strategy in ("tensor", "pipeline") else ProcessGroup(dist.get_rank(), dist.get_world_size())
    )


def require_supported_strategy(training: Training, model: Model) -> None:
    """Raises RecipeInvalid if the network does not support the strategy."""
    strategy, num_processes = training.strategy, training.devices * training.nodes
    if strategy in ("ddp", "fsdp"):
        return
    if not isinstance(model, AttentionConfig):
        raise _unsupported(strategy, f"a network of kind {model.kind}", "a transformer or gpt")
    if strategy == "tensor" and model.num_heads % num_processes:
        problem = f"{model.num_heads} heads for {num_processes} processes"
        raise _unsupported(strategy, problem, "a number of heads that is divisible by the number of processes")
    if strategy == "pipeline":
        if model.num_layers < num_processes:
            problem = f"{model.num_layers} layers for {num_processes} processes"
            raise _unsupported(strategy, problem, "at least one layer per process")
        num_microbatches(training.microbatches, training.batch_size, num_processes)


def _unsupported(strategy: Strategy, problem: str, required: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"`strategy: {strategy}` with {problem}",
        required=required,
        where="the recipe's training.strategy",
        remedy="use `strategy: fsdp`, or change `devices` or the network",
    )


def parallelize(
    network: nn.Module, loop: Loop, strategy: Strategy, device: torch.device, microbatches: int | None = None
) -> Learner:
    """Distributes `network` in place, and returns a learner with the gradients of the complete batch.

    With `fsdp` and `tensor`, the parameters of `network` become shards; with `pipeline`, only this process's layers
    remain.
    """
    if strategy == "pipeline":
        return pipeline_learner(
            network, loop, device, num_microbatches(microbatches, loop.batch_size, dist.get_world_size())
        )
    if strategy == "ddp":
        ids = [device.index] if device.type == "cuda" else None
        return create_learner(DistributedDataParallel(network.to(device), device_ids=ids), loop)
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for block in _blocks(network):
        if strategy == "fsdp":
            fully_shard(block, mesh=mesh)
        else:
            parallelize_module(block, mesh, _sharding_plan(block))
    if strategy == "fsdp":
        fully_shard(network, mesh=mesh)
    return create_learner(network, loop)


def gather_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """The complete weights on the CPU in the first process; empty in the others."""
    if has_remote_modules(network):
        weights_of_processes: list[dict[str, torch.Tensor]] = [{}] * dist.get_world_size()
        own_weights = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
        dist.gather_object(own_weights, weights_of_processes if dist.get_rank() == 0 else None)
        return {name: tensor for weights in weights_of_processes for name, tensor in weights.items()}
    state: dict[str, Any] = get_model_state_dict(
        network, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The modules that are sharded one by one, so that only one is gathered at a time."""
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    return list(lists[0]) if lists else []


def _sharding_plan(block: nn.Module) -> dict[str, ParallelStyle]:
    """Which linear maps of a block are sharded by output (column-wise), and which by input (row-wise)."""
    names = [name for name, module in block.named_modules() if isinstance(module, nn.Linear)]
    return {
        name: RowwiseParallel() if name.rsplit(".", 1)[-1] in ("out", "down") else ColwiseParallel() for name in names
    }
