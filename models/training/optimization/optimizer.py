"""The optimizer, the learning rate schedule, gradient clipping, and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from bloomery.models.training.config import Loop
from bloomery.models.training.process_group import has_remote_modules

_WARMUP = {"one_cycle": 0.3, "cosine": 0.05, "linear": 0.05, "constant": 0.0}


def build_optimizer(network: nn.Module, loop: Loop, rate_shares: dict[str, float] | None = None) -> torch.optim.AdamW:
    """AdamW over all trainable parameters. One-dimensional ones, such as biases and norms, have no weight decay.

    `rate_shares` maps parameter names to learning rates as fractions of the recipe's; the default is 1.

    Source: Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decay = loop.weight_decay if parameter.dim() > 1 else 0.0
            # Sharded and plain tensors cannot be updated in one fused call.
            key = ((rate_shares or {}).get(name, 1.0), decay, isinstance(parameter, DTensor))
            groups.setdefault(key, []).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": members, "lr": loop.learning_rate * share, "weight_decay": decay}
            for (share, decay, _), members in groups.items()
        ],
        lr=loop.learning_rate,
        fused=True,
    )


def build_schedule(optimizer: torch.optim.Optimizer, loop: Loop, num_steps: int) -> LRScheduler:
    """The learning rate schedule over `num_steps` steps.

    Source: Smith & Topin 2018, "Super-Convergence" (one cycle); Loshchilov & Hutter 2017, "SGDR" (cosine).
    """
    warmup = _WARMUP[loop.schedule] if loop.warmup is None else loop.warmup
    if loop.schedule == "one_cycle":
        highest = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, max_lr=highest, total_steps=max(num_steps, 2), pct_start=max(warmup, 1e-9))
    num_warm = round(warmup * num_steps)

    def share(step: int) -> float:
        if step < num_warm:
            return (step + 1) / (num_warm + 1)
        progress = (step - num_warm) / max(num_steps - num_warm, 1)
        if loop.schedule == "constant":
            return 1.0
        return 1 - progress if loop.schedule == "linear" else (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, share)


@torch.no_grad()
def clip_gradients(network: nn.Module, max_norm: float) -> None:
    """Scales all gradients so that their joint norm is at most `max_norm`, also over pipeline stages.

    Source: Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", section 3.2.
    """
    with_gradient = [parameter for parameter in network.parameters() if parameter.grad is not None]
    kinds = [
        [parameter for parameter in with_gradient if isinstance(parameter, DTensor) is is_shard]
        for is_shard in (False, True)
    ]
    norms = [
        nn.utils.get_total_norm([parameter.grad for parameter in same_kind if parameter.grad is not None])
        for same_kind in kinds
        if same_kind
    ]
    norms_of_kinds = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = norms_of_kinds[0] if len(norms_of_kinds) == 1 else torch.linalg.vector_norm(torch.stack(norms_of_kinds))
    if dist.is_initialized() and has_remote_modules(network):
        squares = total.square()
        dist.all_reduce(squares)
        total = squares.sqrt()
    for same_kind in filter(None, kinds):
        nn.utils.clip_grads_with_norm_(same_kind, max_norm, total)


class EMA:
    """An exponential moving average of weights and buffers, with a smaller decay in the first steps.

    `torch.optim.swa_utils.AveragedModel` is no substitute: it copies the weights at the first step, and deep-copies the
    network, which FSDP does not support.

    Source: Polyak & Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging".
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        self.decay, self.num_steps = decay, 0

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Updates the average. Integers, such as the step counts of batch normalisation, are copied."""
        self.num_steps += 1
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        pairs = [(self.tensors[name], tensor) for name, tensor in network.state_dict().items()]
        for is_shard in (False, True):
            same_kind = [
                pair for pair in pairs if pair[0].is_floating_point() and isinstance(pair[0], DTensor) is is_shard
            ]
            if same_kind:
                torch._foreach_lerp_(
                    [averages for averages, _ in same_kind], [weights for _, weights in same_kind], 1 - decay
                )
        for averages, weights in pairs:
            if not averages.is_floating_point():
                averages.copy_(weights)

    @contextmanager
    def applied_to(self, network: nn.Module) -> Iterator[None]:
        """Within the context, `network` has the averaged weights."""
        before = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        network.load_state_dict(self.tensors)
        try:
            yield
        finally:
            network.load_state_dict(before)
