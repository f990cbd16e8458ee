"""Importance of single weights for the outputs of a network."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bloomery.models.compression.config import Importance
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, even_sample
from bloomery.models.training.optimization.contrastive_loss import is_embedding, join_pairs, pair_tokens
from bloomery.models.training.optimization.loss import build_loss

# A parameter -> the importance of each of its weights: float32 of its shape, at least 0. A structure's is their sum.
ImportanceFunction = Callable[[torch.Tensor], torch.Tensor]

_MAX_ROWS = 1024
_BATCH_SIZE = 64


def magnitude_importance(weight: torch.Tensor) -> torch.Tensor:
    """The square of each weight.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets", section 3.
    """
    return weight.data.square()


def taylor_importance(weight: torch.Tensor) -> torch.Tensor:
    """First-order estimate of the squared change of the loss without each weight: (gradient x weight)^2.

    `weight` needs a gradient, as after `compute_gradients`; without one it has no importance.

    Source: Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning", equation 8.
    """
    return torch.zeros_like(weight.data) if weight.grad is None else (weight.data * weight.grad.data).square()


IMPORTANCE_FUNCTIONS: dict[Importance, ImportanceFunction] = {
    "magnitude": magnitude_importance,
    "taylor": taylor_importance,
}


def compute_gradients(network: nn.Module, examples: Examples) -> None:
    """Set the gradient of each parameter of `network` to that of the mean loss over a sample of `examples`."""
    x, y = (even_sample(tensor, _MAX_ROWS)[:_MAX_ROWS] for tensor in (examples.x, examples.y))
    losses = build_loss(Loop(epochs=1), y)
    network.zero_grad(set_to_none=True)
    # Recurrent layers have gradients in training mode only; dropout and batch normalisation stay in evaluation mode.
    network.train()
    for module in network.modules():
        if not isinstance(module, nn.RNNBase):
            module.training = False
    for rows, labels in zip(x.split(_BATCH_SIZE), y.split(_BATCH_SIZE), strict=True):
        inputs = rows
        if is_embedding(labels):
            inputs, labels = join_pairs(rows, labels), pair_tokens(rows, labels)
        (losses(network(inputs), labels) / len(y)).backward()
    network.eval()
