"""One forward and one backward pass over a batch.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bloomery.models.training.config import Loop
from bloomery.models.training.optimization.mixed_precision import autocast

# (outputs_BK, rows) -> the summed losses of those rows of the batch, for which `outputs_BK` are the outputs.
RowLosses = Callable[[torch.Tensor, slice], torch.Tensor]
# (x, losses, divisor) -> the loss of the batch; adds the gradients of loss / divisor to those of the network.
Learner = Callable[[torch.Tensor, RowLosses, float], torch.Tensor]


def create_learner(network: nn.Module, loop: Loop) -> Learner:
    """A learner that calls `network` once per batch, compiled and with bfloat16 products as configured.

    Of a network with `member_outputs` (B, E, K), such as TabM, the loss is the mean of those of its members: each
    learns for itself, or the members would become parts of one large network.
    """
    member_outputs: Callable[[torch.Tensor], torch.Tensor] | None = getattr(network, "member_outputs", None)
    function = network if member_outputs is None else member_outputs
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(function) if loop.compile else function

    def learn(x: torch.Tensor, losses: RowLosses, divisor: float) -> torch.Tensor:
        with autocast(loop, x.device):
            outputs = forward(x)
        if member_outputs is None:
            loss = losses(outputs, slice(None))
        else:
            losses_E = [losses(outputs_BK, slice(None)) for outputs_BK in outputs.unbind(1)]
            loss = torch.stack(losses_E).mean()
        (loss / divisor).backward()
        return loss.detach()

    return learn
