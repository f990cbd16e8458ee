"""Weights that are zero, and stay zero while the others are fine-tuned.

ONNX Runtime is not quicker for it: zeros serve the stored size (`coding.py`, `plain.py`), and those of a pattern other
runtimes on hardware that skips them. In turns,

    masks = masks_of(network, density_at(round, num_rounds, last=0.01), scope="lamp")
    with held(network, masks):
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

Masks = dict[str, torch.Tensor]  # by a parameter's name, bool of its shape: which weights stay


def scheduled_density(step: int, num_steps: int, *, last: float, first: float = 1.0) -> float:
    """The share of weights that stays after `step` of `num_steps`: from `first` quickly, then slowly, to `last`.

    Source: Zhu & Gupta 2017, "To prune, or not to prune", equation 1.
    """
    rest = 1 - min(max(step / num_steps, 0.0), 1.0)
    return last + (first - last) * rest**3


def lamp_scores(weight: torch.Tensor) -> torch.Tensor:
    """Of `weight`'s shape, float64: each weight's square as a share of its own and all larger ones' together.

    The largest weight of a layer has 1, so no layer is lost whole when layers are compared. Zeros have 0.

    Source: Lee et al. 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning", definition 1.
    """
    squares, order = weight.detach().double().flatten().square().sort(stable=True)
    of_rest = squares.flip(0).cumsum(0).flip(0)
    shares = torch.where(squares > 0, squares / of_rest.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return torch.empty_like(shares).index_copy(0, order, shares).reshape(weight.shape)


def maskable_weights(network: nn.Module) -> dict[str, nn.Parameter]:
    """What can be made sparse, by name: tensors of two and more dimensions. Biases and norms are few and stay."""
    return {name: parameter for name, parameter in network.named_parameters() if parameter.dim() > 1}


def compute_masks(network: nn.Module, density: float, scope: SparsityCriterion = "lamp") -> Masks:
    """Which weights stay, so that the share `density` of all of them does, those with the highest scores.

    "layer" keeps that share of each layer, by magnitude; "global" compares magnitudes over all layers, and "lamp"
    compares `lamp_scores`. Weights that are zero already are the first to go, so from round to round masks only shrink.

    Raises:
        RecipeInvalid: the density is not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise RecipeInvalid(
            f"the share of weights that is to stay is {density:g}",
            required="above 0 and at most 1",
            where="the density of a sparse candidate",
            remedy="state the share that stays, such as 0.05, and not the share that goes",
        )
    weights = maskable_weights(network)
    if scope == "layer":
        return {name: _highest(weight.detach().abs(), density) for name, weight in weights.items()}
    scores = {
        name: lamp_scores(weight) if scope == "lamp" else weight.detach().abs().double()
        for name, weight in weights.items()
    }
    stays = _highest(torch.cat([score.flatten() for score in scores.values()]), density)
    pieces = stays.split([weight.numel() for weight in weights.values()])
    return {name: piece.reshape(weight.shape) for (name, weight), piece in zip(weights.items(), pieces, strict=True)}


def _highest(scores: torch.Tensor, density: float) -> torch.Tensor:
    """True for the share `density` of `scores`, at least one; of equal scores the first ones."""
    num_kept = max(round(density * scores.numel()), 1)
    order = scores.flatten().argsort(descending=True, stable=True)
    stays = torch.zeros(scores.numel(), dtype=torch.bool)
    stays[order[:num_kept]] = True
    return stays.reshape(scores.shape)


def n_of_m_mask(weight_OI: torch.Tensor, n: int, m: int) -> torch.Tensor:
    """bool (O, I): of each `m` inputs side by side the `n` largest stay, such as 2:4. I may have more dimensions.

    Inputs of a kernel count channel by channel at the same place of the kernel, as hardware has it. What is left over
    behind the last whole group stays.

    Source: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks", section 3.

    Raises:
        RecipeInvalid: not 0 < n <= m.
    """
    if not 0 < n <= m:
        raise RecipeInvalid(
            f"a pattern of {n}:{m}",
            required="at least one weight of each group, and at most all of them",
            where="the pattern of a sparse candidate",
            remedy="state for example 2:4",
        )
    by_input = weight_OI.detach().abs().movedim(1, -1)
    num_whole = by_input.shape[-1] // m * m
    groups = by_input[..., :num_whole].unflatten(-1, (-1, m))
    order = groups.argsort(dim=-1, descending=True, stable=True)
    stays = torch.ones_like(by_input, dtype=torch.bool)
    stays[..., :num_whole] = torch.zeros_like(groups, dtype=torch.bool).scatter(-1, order[..., :n], True).flatten(-2)
    return stays.movedim(-1, 1)


def compute_n_of_m_masks(network: nn.Module, n: int, m: int) -> Masks:
    """`n_of_m_mask` for the weights of linear, convolutional and recurrent layers, which multiply inputs side by side.

    What is looked up or multiplied one by one, such as embeddings, stays, and so does a layer of fewer than `m` inputs.
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
    """Within, and afterwards, weights outside of `masks` are zero, whatever is learnt by an optimizer made within.

    Their gradients are zero, so Adam's moments are too, and nothing decays from zero: each step leaves them.
    """
    parameters = dict(network.named_parameters())
    handles = []
    for name, mask in masks.items():
        _clear(parameters[name], mask)
        handles.append(parameters[name].register_hook(_Masked(mask)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for name, mask in masks.items():
            _clear(parameters[name], mask)


class _Masked:
    """The gradient of what stays. A class, since a hook in a loop would see the loop's last mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def __call__(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.mask.to(gradient.device)


@torch.no_grad()
def _clear(weight: torch.Tensor, mask: torch.Tensor) -> None:
    # Not a product: that would leave zeros with a sign, which are other bits to whoever stores them.
    weight.masked_fill_(~mask.to(weight.device), 0.0)


def measure_density(network: nn.Module) -> float:
    """The share of weights that are not zero."""
    weights = maskable_weights(network).values()
    return sum(int(weight.count_nonzero()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)
