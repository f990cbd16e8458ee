"""Large matrices as the product of two thin ones.

Shapes: O outputs, I inputs, R rank, V entries of an embedding.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

_LEAST_PARAMETERS = 4096  # of a layer, below which nothing is gained that is worth an operator more


def factorize(network: nn.Module, share: float) -> nn.Module:
    """A copy of `network` whose large linear and embedding layers are two thin ones, and have lost `share` of their
    parameters.

    Each layer's product is the best of its rank in the sense of least squares. A layer that would not become smaller
    stays as it is, and so does `network`. The copy is in evaluation mode; no config builds it.

    Source: Eckart & Young 1936, "The approximation of one matrix by another of lower rank"; Sainath et al. 2013,
    "Low-rank Matrix Factorization for Deep Neural Network Training with High-dimensional Output Targets".
    """
    smaller = copy.deepcopy(network).eval()
    for module in list(smaller.modules()):
        for name, layer in list(module.named_children()):
            thin = _thin(layer, share)
            if thin is not None:
                setattr(module, name, thin.eval())
    return smaller


def _thin(layer: nn.Module, share: float) -> nn.Sequential | None:
    # Subclasses may be read in other ways than by a call, as the output layer inside torch's own attention is.
    if type(layer) not in (nn.Linear, nn.Embedding):
        return None
    assert isinstance(layer, nn.Linear | nn.Embedding)
    if layer.weight.numel() < _LEAST_PARAMETERS:
        return None
    weight = layer.weight.data
    rank = int((1 - share) * weight.numel() / sum(weight.shape))
    if rank < 1 or rank >= min(weight.shape):
        return None
    u_AR, s_R, v_RB = (part.to(weight.dtype) for part in torch.linalg.svd(weight.double(), full_matrices=False))
    left_AR, right_RB = u_AR[:, :rank] * s_R[:rank].sqrt(), s_R[:rank].sqrt()[:, None] * v_RB[:rank]
    if isinstance(layer, nn.Embedding):
        second = nn.Linear(rank, weight.shape[1], bias=False)
        entries = nn.Embedding(len(weight), rank, padding_idx=layer.padding_idx)
        entries.weight, second.weight = nn.Parameter(left_AR), nn.Parameter(right_RB.T.contiguous())
        return nn.Sequential(entries, second)
    first, second = nn.Linear(weight.shape[1], rank, bias=False), nn.Linear(rank, len(weight), bias=False)
    first.weight, second.weight, second.bias = nn.Parameter(right_RB), nn.Parameter(left_AR), layer.bias
    return nn.Sequential(first, second)
