"""Low-rank factorization: large matrices as the product of two thin ones.

Shapes: A outputs, B inputs, R rank.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

_MIN_PARAMETERS = 4096  # of a layer; a smaller one saves too little for one more operator


def factorize(network: nn.Module, share: float) -> nn.Module:
    """A copy of `network` in which two thin layers, with `share` fewer parameters, replace each large one.

    This applies to linear and embedding layers. Each product is the best approximation of its rank by least squares. A
    layer that would not become smaller stays.
    `network` itself does not change. The copy is in evaluation mode; no config builds it.

    Source: Eckart & Young 1936, "The approximation of one matrix by another of lower rank"; Sainath et al. 2013,
    "Low-rank Matrix Factorization for Deep Neural Network Training with High-dimensional Output Targets".
    """
    factorized = copy.deepcopy(network).eval()
    for module in list(factorized.modules()):
        for name, layer in list(module.named_children()):
            thin = _factorize_layer(layer, share)
            if thin is not None:
                setattr(module, name, thin.eval())
    return factorized


def _factorize_layer(layer: nn.Module, share: float) -> nn.Sequential | None:
    # Subclasses may be used without a call, as the output layer of torch's own attention is.
    if type(layer) not in (nn.Linear, nn.Embedding):
        return None
    assert isinstance(layer, nn.Linear | nn.Embedding)
    if layer.weight.numel() < _MIN_PARAMETERS:
        return None
    weight = layer.weight.data
    rank = int((1 - share) * weight.numel() / sum(weight.shape))
    if rank < 1 or rank >= min(weight.shape):
        return None
    u_AR, s_R, v_RB = (factor.to(weight.dtype) for factor in torch.linalg.svd(weight.double(), full_matrices=False))
    left_AR, right_RB = u_AR[:, :rank] * s_R[:rank].sqrt(), s_R[:rank].sqrt()[:, None] * v_RB[:rank]
    if isinstance(layer, nn.Embedding):
        second = nn.Linear(rank, weight.shape[1], bias=False)
        entries = nn.Embedding(len(weight), rank, padding_idx=layer.padding_idx)
        entries.weight, second.weight = nn.Parameter(left_AR), nn.Parameter(right_RB.T.contiguous())
        return nn.Sequential(entries, second)
    first, second = nn.Linear(weight.shape[1], rank, bias=False), nn.Linear(rank, len(weight), bias=False)
    first.weight, second.weight, second.bias = nn.Parameter(right_RB), nn.Parameter(left_AR), layer.bias
    return nn.Sequential(first, second)
