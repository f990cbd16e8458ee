"""How much each weight matters to what a network answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bloomery.models.compression.config import Importance
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, even_sample
from bloomery.models.training.optimization.loss import build_loss

# Of each single weight of a parameter: float32 of its shape, never below 0. What leaves adds up over what it holds.
ImportanceFunction = Callable[[torch.Tensor], torch.Tensor]

_MOST_ROWS = 1024
_BATCH = 64


def magnitude_importance(weight: torch.Tensor) -> torch.Tensor:
    """The square of each weight.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.
    """
    return weight.data.square()


def taylor_importance(weight: torch.Tensor) -> torch.Tensor:
    """The square of what the loss would change by without each weight, to first order: (gradient x weight)^2.

    `weight` has a gradient, as after `compute_gradients`; one without any does not matter.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8.
    """
    return torch.zeros_like(weight.data) if weight.grad is None else (weight.data * weight.grad.data).square()


IMPORTANCE_FUNCTIONS: dict[Importance, ImportanceFunction] = {
    "magnitude": magnitude_importance,
    "taylor": taylor_importance,
}


def compute_gradients(network: nn.Module, examples: Examples) -> None:
    """Afterwards each parameter of `network` holds the gradient of the mean loss over some rows of `examples`."""
    x, y = (even_sample(part, _MOST_ROWS)[:_MOST_ROWS] for part in (examples.x, examples.y))
    losses = build_loss(Loop(epochs=1), y)
    network.zero_grad(set_to_none=True)
    # A recurrent layer gives gradients in training mode alone, and then dropout and batch normalisation stand still.
    network.train()
    for module in network.modules():
        if not isinstance(module, nn.RNNBase):
            module.training = False
    for rows, labels in zip(x.split(_BATCH), y.split(_BATCH), strict=True):
        (losses(network(rows), labels) / len(y)).backward()
    network.eval()
