"""Unstructured pruning: sets weights to zero and keeps them zero while the others are fine-tuned.

ONNX Runtime is not faster for it: zeros reduce the stored size (models/onnx_storage), and N:M patterns help runtimes on
hardware that skips them. In rounds:

    masks = compute_masks(network, scheduled_density(round, num_rounds, last=0.01))
    with fixed_masks(network, masks):
        train(network, ...)

Shapes: O outputs of a layer, I inputs of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.config import SparsityCriterion

Masks = dict[str, torch.Tensor]  # by parameter name: bool of its shape, True for weights that stay


def scheduled_density(step: int, num_steps: int, *, last: float, first: float = 1.0) -> float:
    """Density after `step` of `num_steps`, by a cubic schedule from `first` to `last`: quickly at first, then slowly.

    Source: Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """
    remaining = 1 - min(max(step / num_steps, 0.0), 1.0)
    return last + (first - last) * remaining**3


def lamp_scores(weight: torch.Tensor) -> torch.Tensor:
    """float64 of `weight`'s shape: each weight's square as a share of the sum of its own and all larger squares.

    The largest weight of a layer scores 1, so no layer is lost when layers are compared. Zeros score 0.

    Source: Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", definition 1.
    """
    squares, order = weight.detach().double().flatten().square().sort(stable=True)
    sum_of_larger = squares.flip(0).cumsum(0).flip(0)
    scores = torch.where(squares > 0, squares / sum_of_larger.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return torch.empty_like(scores).index_copy(0, order, scores).reshape(weight.shape)


def maskable_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that can become sparse, by name: those of two and more dimensions. Biases and norms stay dense."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.dim() > 1}


def compute_masks(network: nn.Module, density: float, criterion: SparsityCriterion = "lamp") -> Masks:
    """Masks that keep the share `density` of all weights, those with the highest scores.

    `layer_magnitude` keeps that share of each layer; `global_magnitude` compares magnitudes across layers, and `lamp`
    compares `lamp_scores`. Zeros score lowest, so masks only shrink from round to round.

    Raises:
        RecipeInvalid: the density is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise RecipeInvalid(
            f"the density is {density:g}",
            required="above 0 and at most 1",
            where="sparsify.density of a candidate",
            remedy="set the share of weights that stays, such as 0.05, and not the share to remove",
        )
    weights = maskable_weights(network)
    if criterion == "layer_magnitude":
        return {name: _highest(weight.detach().abs(), density) for name, weight in weights.items()}
    scores = {
        name: lamp_scores(weight) if criterion == "lamp" else weight.detach().abs().double()
        for name, weight in weights.items()
    }
    is_kept = _highest(torch.cat([score.flatten() for score in scores.values()]), density)
    masks = is_kept.split([weight.numel() for weight in weights.values()])
    return {name: mask.reshape(weight.shape) for (name, weight), mask in zip(weights.items(), masks, strict=True)}


def _highest(scores: torch.Tensor, density: float) -> torch.Tensor:
    """True for the share `density` of `scores`, at least one; the first of equal scores."""
    num_kept = max(round(density * scores.numel()), 1)
    order = scores.flatten().argsort(descending=True, stable=True)
    is_kept = torch.zeros(scores.numel(), dtype=torch.bool)
    is_kept[order[:num_kept]] = True
    return is_kept.reshape(scores.shape)


def n_of_m_mask(weight_OI: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """bool (O, I, ...): the `n` largest of every `m` adjacent inputs, such as 2:4.

    Inputs of a convolution are its channels at the same kernel position, as hardware defines it. An incomplete last
    group stays whole.

    Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3.

    Raises:
        RecipeInvalid: not 0 < n <= m.
    """
    if not 0 < n <= m:
        raise RecipeInvalid(
            f"the pattern is {n}:{m}",
            required="at least one weight of each group, and at most all of them",
            where="sparsify.pattern of a candidate",
            remedy='use for example "2:4"',
        )
    by_input = weight_OI.detach().abs().movedim(1, -1)
    num_grouped = by_input.shape[-1] // m * m
    groups = by_input[..., :num_grouped].unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    is_kept = torch.ones_like(by_input, dtype=torch.bool)
    kept_in_group = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :n], True)
    is_kept[..., :num_grouped] = kept_in_group.flatten(-2)
    return is_kept.movedim(-1, 1)


def compute_n_of_m_masks(network: nn.Module, n: int, m: int) -> Masks:
    """`n_of_m_mask` for the weights of linear, convolutional and recurrent layers.

    Embeddings and the like stay dense, and so does a layer of fewer than `m` inputs.
    """
    layers = (module for module in network.modules() if isinstance(module, (nn.Linear, _ConvNd, nn.RNNBase)))
    multiplied = {id(parameter) for layer in layers for parameter in layer.parameters(recurse=False)}
    return {
        name: n_of_m_mask(weight, n, m)
        for name, weight in maskable_weights(network).items()
        if id(weight) in multiplied
    }


@contextmanager
def fixed_masks(network: nn.Module, masks: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """Within and afterwards, weights outside of `masks` are zero, with any optimizer that is created within.

    Their gradients are zero, and so are Adam's moments and the decay, so no step changes them.
    """
    parameters = dict(network.named_parameters())
    handles = []
    for name, mask in masks.items():
        _clear(parameters[name], mask)
        handles.append(parameters[name].register_hook(_MaskedGradient(mask)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, mask in masks.items():
            _clear(parameters[name], mask)


class _MaskedGradient:
    """A gradient hook. A class, since a closure in a loop would see the last mask only."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.mask.to(gradient.device)


@torch.no_grad()
def _clear(weight: torch.Tensor, mask: torch.Tensor) -> None:
    # Not a product: that would leave negative zeros, which are stored in other bits.
    weight.masked_fill_(~mask.to(weight.device), 0.0)


def measure_density(network: nn.Module) -> float:
    """The share of nonzero weights."""
    weights = maskable_weights(network).values()
    return sum(int(weight.count_nonzero()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)
