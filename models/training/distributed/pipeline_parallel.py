"""Pipeline parallelism: each process computes some blocks of a Transformer, and passes the result on.

A batch is processed in microbatches, so that the processes work concurrently.

Source: Huang et al. 2019, "GPipe" (microbatches); Narayanan et al. 2021, "Efficient Large-Scale Language Model Training
on GPU Clusters Using Megatron-LM", section 2.2 (one forward, one backward: few microbatches in memory).

Shapes: B rows, T steps, W width, K outputs.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.training.config import Loop
from bloomery.models.training.optimization.learner import Learner, RowLosses
from bloomery.models.training.optimization.mixed_precision import uses_bf16
from bloomery.models.training.process_group import RemoteModule

_MICROBATCHES = 4  # per process


class PipelinedNetwork(Protocol):
    """A network that computes `compute_outputs(block(... block(embed(x), padding_mask(x))), x)`."""

    @property
    def blocks(self) -> nn.ModuleList: ...
    def embed(self, x: torch.Tensor) -> torch.Tensor: ...
    def padding_mask(self, x: torch.Tensor) -> torch.Tensor | None: ...
    def compute_outputs(self, h_BTW: torch.Tensor, x: torch.Tensor) -> torch.Tensor: ...


class PipelineStageModule(nn.Module):
    """One stage: the first process embeds, the last computes outputs, and each has its own blocks."""

    def __init__(self, network: nn.Module, own_blocks: range, rank: int, size: int, *, use_bf16: bool) -> None:
        super().__init__()
        self.network = network
        self._own_blocks, self._is_first, self._is_last, self._use_bf16 = (
            own_blocks,
            rank == 0,
            rank == size - 1,
            use_bf16,
        )

    def forward(self, stage_input: torch.Tensor, x: torch.Tensor | None = None) -> torch.Tensor:
        """`stage_input` is x in the first process; in the others h_BTW, with x passed too for its padding mask."""
        x = stage_input if x is None else x
        network = cast(PipelinedNetwork, self.network)
        use_bf16 = self._use_bf16 and self.network.training
        with torch.autocast(x.device.type, torch.bfloat16, enabled=use_bf16):
            h_BTW = network.embed(x) if self._is_first else stage_input
            mask = network.padding_mask(x)
            for number in self._own_blocks:
                h_BTW = network.blocks[number](h_BTW, mask)
            return network.compute_outputs(h_BTW, x) if self._is_last else h_BTW


def num_microbatches(configured: int | None, batch_size: int, num_processes: int) -> int:
    """The number of microbatches. With four per process, none is idle for more than a fifth of the time.

    Raises:
        RecipeInvalid: there are fewer microbatches than processes, or more than rows.
    """
    number = min(_MICROBATCHES * num_processes, batch_size) if configured is None else configured
    if not num_processes <= number <= batch_size:
        raise RecipeInvalid(
            f"{number} microbatches for {num_processes} processes and a batch of {batch_size} rows",
            required="at least as many as processes, and at most as many as rows",
            where="the recipe's training.microbatches and batch_size",
            remedy="leave `microbatches` out, or make `batch_size` larger",
        )
    return number


def pipeline_learner(network: nn.Module, loop: Loop, device: torch.device, num_microbatches: int) -> Learner:
    """Reduces `network` to this process's stage, and returns its learner. All processes get the same batches.

    Afterwards, calling `network` with the same rows in every process returns the outputs of the complete network. Each
    batch is divided into `num_microbatches`.

    Raises:
        RecipeInvalid: this process's stage has no trainable parameter.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    num_outputs = cast(nn.Linear, network.head).out_features
    stage_module = PipelineStageModule(
        network, _keep_own_blocks(network, rank, size), rank, size, use_bf16=uses_bf16(loop, device)
    )
    # Otherwise dropout would use the same mask in every stage.
    torch.manual_seed(torch.initial_seed() + rank)

    def stage(module: nn.Module) -> PipelineStage:
        return PipelineStage(module, rank, size, device)

    train_stage = stage(cast(nn.Module, torch.compile(stage_module)) if loop.compile else stage_module)
    train_schedule = Schedule1F1B(train_stage, num_microbatches, loss_fn=_microbatch_loss, scale_grads=False)
    predict_schedule = ScheduleGPipe(stage(stage_module), num_microbatches)
    num_rows = -(-loop.batch_size // num_microbatches) * num_microbatches  # buffers between processes have a fixed size

    def learn(x: torch.Tensor, losses: RowLosses, divisor: float) -> torch.Tensor:
        losses_of_stage: list[torch.Tensor] = []
        args, kwargs = _schedule_inputs(x, num_rows, rank)
        loss_kwargs = {"losses": losses, "num_rows": len(x), "divisor": divisor}
        rows = torch.arange(num_rows)
        train_schedule.step(
            *args, target=rows, losses=losses_of_stage, return_outputs=False, loss_kwargs=loss_kwargs, **kwargs
        )
        loss = (
            torch.stack(losses_of_stage).detach().sum() * divisor if losses_of_stage else torch.zeros((), device=device)
        )
        dist.broadcast(loss, src=size - 1)
        return loss

    @torch.no_grad()
    def predict(x: torch.Tensor) -> torch.Tensor:
        outputs_BK = x.new_empty(len(x), num_outputs)
        for first in range(0, len(x), num_rows):
            rows = x[first : first + num_rows]
            args, kwargs = _schedule_inputs(rows, num_rows, rank)
            outputs = predict_schedule.step(*args, **kwargs)
            if outputs is not None:
                outputs_BK[first : first + len(rows)] = outputs[: len(rows)]
        dist.broadcast(outputs_BK, src=size - 1)
        return outputs_BK

    network.forward = predict
    return learn


def _microbatch_loss(
    outputs_BK: torch.Tensor, at_B: torch.Tensor, *, losses: RowLosses, num_rows: int, divisor: float
) -> torch.Tensor:
    """The loss of a microbatch. Padding rows are at the end of the batch and are ignored."""
    first = int(at_B[0])
    num_real = min(max(num_rows - first, 0), len(at_B))
    return losses(outputs_BK[:num_real], slice(first, first + num_real)) / divisor


def _schedule_inputs(x: torch.Tensor, num_rows: int, rank: int) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """The arguments of a schedule in this process: x, padded with rows of zeros."""
    filled = F.pad(x, (0, 0) * (x.dim() - 1) + (0, num_rows - len(x)))
    return ((filled,), {}) if rank == 0 else ((), {"x": filled})


def _keep_own_blocks(network: nn.Module, rank: int, size: int) -> range:
    """Assigns blocks to this process and replaces all other modules with parameters by `RemoteModule`.

    Modules before the blocks belong to the first process, modules after them to the last.
    """
    blocks = cast(PipelinedNetwork, network).blocks
    owner = {
        module: position * size // len(blocks) for position, block in enumerate(blocks) for module in block.modules()
    }
    own_blocks = range(*(-(-number * len(blocks) // size) for number in (rank, rank + 1)))
    current = 0
    for name, module in list(network.named_modules()):
        if module is blocks:
            current = size - 1
        if next(module.parameters(recurse=False), None) is not None and owner.get(module, current) != rank:
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, RemoteModule())
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise RecipeInvalid(
            f"every parameter of pipeline stage {rank + 1} of {size} is frozen",
            required="a trainable parameter in each process",
            where="the recipe's training.freeze",
            remedy="use `strategy: ddp` or `fsdp`, or freeze less",
        )
    return own_blocks
