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
    """A learner that calls `network` once per batch, compiled and with bfloat16 products as configured."""
    forward: Callable[[torch.Tensor], torch.Tensor] = torch.compile(network) if loop.compile else network

    def learn(x: torch.Tensor, losses: RowLosses, divisor: float) -> torch.Tensor:
        with autocast(loop, x.device):
            outputs_BK = forward(x)
        loss = losses(outputs_BK, slice(None))
        (loss / divisor).backward()
        return loss.detach()

    return learn
