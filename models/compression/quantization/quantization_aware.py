"""Quantization-aware training: a network learns while its weights and activations are rounded as they will be.

Shapes: B rows, K outputs of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.func import functional_call

from bloomery.models.training.loop import predict

_MOMENTUM = 0.01  # of the ranges, a new batch against all before
_ACTIVATION_LEVEL = 255  # the largest of uint8
_WEIGHT_LEVEL, _REDUCED_LEVEL = 127, 64  # the largest of int8, and of 7 bits, on both sides of 0


def add_fake_quantization(
    network: nn.Module, *, reduce_range: bool = False, keep_float: Collection[str] = ()
) -> nn.Module:
    """A copy of `network` whose convolutions and linear maps, but for those in `keep_float`, round their weights and
    what comes in to 8 bits.

    Train it as any other: gradients pass rounding as if it were not there, and are 0 outside a range. Then export what
    `remove_fake_quantization` returns, and quantize that with `learned_ranges`.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3; Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for
    Conditional Computation" (the straight-through estimator).
    """
    rounding = copy.deepcopy(network)
    level = _REDUCED_LEVEL if reduce_range else _WEIGHT_LEVEL
    for name, layer in list(_layers(rounding)):
        if name not in keep_float:
            rounding.set_submodule(name, _Rounding(layer, level))
    return rounding


def find_first_called_layer(network: nn.Module, x: torch.Tensor) -> tuple[str, ...]:
    """For `keep_float` of `add_fake_quantization`: the name of the layer by which rows `x` (B, ...) come in, if any.

    `network` is in evaluation mode afterwards.
    """
    called: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: called.append(name)) for name, layer in _layers(network)
    ]
    try:
        predict(network, x)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(called[:1])


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """What can round. Subclasses may be read in other ways than by a call, as in torch's own attention."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and type(layer) in (nn.Conv2d, nn.Linear):
            yield name, layer


def learned_ranges(network: nn.Module) -> dict[str, tuple[float, float]]:
    """What `quantize` takes as `ranges`: by layer, the least and largest value that goes in, as training has seen."""
    return {
        name: (float(module.low), float(module.high))
        for name, module in network.named_modules()
        if isinstance(module, _Rounding)
    }


def remove_fake_quantization(network: nn.Module) -> nn.Module:
    """A copy of what `add_fake_quantization` made, in float and of the structure that it had, with what it learnt."""
    plain = copy.deepcopy(network)
    for name, module in list(plain.named_modules()):
        if isinstance(module, _Rounding):
            plain.set_submodule(name, module.layer)
    return plain


class _Rounding(nn.Module):
    """A layer whose weight has a range of its own for each output, and whose input the range that training has seen.

    The range of the input is a mean over batches that moves along, and always holds 0, which must be one of the levels.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, level: int) -> None:
        super().__init__()
        self.layer, self._level = layer, level
        self.register_buffer("low", torch.zeros_like(layer.weight[(0,) * layer.weight.dim()]))
        self.register_buffer("high", torch.zeros_like(self.low))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._look_at(x.detach())
        weights = {"weight": _rounded_weight(self.layer.weight, self._level)}
        return functional_call(self.layer, weights, (_rounded(x, self.low, self.high),))

    def _look_at(self, x: torch.Tensor) -> None:
        is_first = (self.high == self.low).float()
        share = is_first + (1 - is_first) * _MOMENTUM
        self.low.lerp_(x.amin().clamp(max=0.0), share)
        self.high.lerp_(x.amax().clamp(min=0.0), share)


def _rounded_weight(weight: torch.Tensor, level: int) -> torch.Tensor:
    # Batch normalisation behind the layer only stretches the range of each output, so it need not be folded in first.
    scale_K = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / level
    return torch.fake_quantize_per_channel_affine(
        weight, scale_K, torch.zeros_like(scale_K, dtype=torch.int32), 0, -level, level
    )


def _rounded(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    scale = (high - low).clamp(min=1e-12) / _ACTIVATION_LEVEL
    zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, _ACTIVATION_LEVEL)
