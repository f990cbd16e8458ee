"""Quantization-aware training: weights and activations are rounded during training as they will be in 8 bits.

Shapes: B rows, K outputs of a layer.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator

import torch
from torch import nn
from torch.func import functional_call

from bloomery.models.training.loop import predict

_MOMENTUM = 0.01  # of the ranges: weight of a new batch
_MAX_ACTIVATION_LEVEL = 255  # uint8
_MAX_WEIGHT_LEVEL, _MAX_REDUCED_LEVEL = 127, 64  # int8 and 7 bits, symmetric


def add_fake_quantization(
    network: nn.Module, *, reduce_range: bool = False, keep_float: Collection[str] = ()
) -> nn.Module:
    """A copy of `network` in which convolutions and linear layers, except `keep_float`, round weights and inputs.

    Train it like any other network: gradients pass straight through the rounding, and are 0 outside a range. Then
    export what `remove_fake_quantization` returns, and quantize it with `learned_ranges`.

    Source: Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3; Bengio et al. 2013, "Estimating or Propagating Gradients Through Stochastic Neurons for
    Conditional Computation" (the straight-through estimator).
    """
    quantized = copy.deepcopy(network)
    max_level = _MAX_REDUCED_LEVEL if reduce_range else _MAX_WEIGHT_LEVEL
    for name, layer in list(_layers(quantized)):
        if name not in keep_float:
            quantized.set_submodule(name, _FakeQuantized(layer, max_level))
    return quantized


def find_first_called_layer(network: nn.Module, x: torch.Tensor) -> tuple[str, ...]:
    """The name of the layer that reads the rows `x` (B, ...), for `keep_float`; empty if there is none.

    `network` is in evaluation mode afterwards.
    """
    called_layers: list[str] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, name=name: called_layers.append(name))
        for name, layer in _layers(network)
    ]
    try:
        predict(network, x)
    finally:
        for hook in hooks:
            hook.remove()
    return tuple(called_layers[:1])


def _layers(network: nn.Module) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """The layers that can be rounded. Subclasses may be used without a call, as in torch's own attention."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and type(layer) in (nn.Conv2d, nn.Linear):
            yield name, layer


def learned_ranges(network: nn.Module) -> dict[str, tuple[float, float]]:
    """By layer, the least and largest input seen in training, for `QuantizationOptions.ranges`."""
    return {
        name: (float(module.low), float(module.high))
        for name, module in network.named_modules()
        if isinstance(module, _FakeQuantized)
    }


def remove_fake_quantization(network: nn.Module) -> nn.Module:
    """A float copy of a network from `add_fake_quantization`, with its trained weights and its original structure."""
    float_network = copy.deepcopy(network)
    for name, module in list(float_network.named_modules()):
        if isinstance(module, _FakeQuantized):
            float_network.set_submodule(name, module.layer)
    return float_network


class _FakeQuantized(nn.Module):
    """A layer that rounds its weight, per output channel, and its input, in the range seen in training.

    The input range is a moving average over batches. It always contains 0, which must be one of the levels.
    """

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, max_level: int) -> None:
        super().__init__()
        self.layer, self._max_level = layer, max_level
        self.register_buffer("low", torch.zeros_like(layer.weight[(0,) * layer.weight.dim()]))
        self.register_buffer("high", torch.zeros_like(self.low))

    @property
    def weight(self) -> torch.Tensor:
        """The unrounded weight, whose type networks of `transformers` read."""
        return self.layer.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._update_range(x.detach())
        weights = {"weight": _round_weight(self.layer.weight, self._max_level)}
        return functional_call(self.layer, weights, (_round_activation(x, self.low, self.high),))

    def _update_range(self, x: torch.Tensor) -> None:
        is_first = (self.high == self.low).float()
        momentum = is_first + (1 - is_first) * _MOMENTUM
        self.low.lerp_(x.amin().clamp(max=0.0), momentum)
        self.high.lerp_(x.amax().clamp(min=0.0), momentum)


def _round_weight(weight: torch.Tensor, max_level: int) -> torch.Tensor:
    # Batch normalisation behind the layer only scales the range of each output, so it need not be folded in before.
    scale_K = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12) / max_level
    return torch.fake_quantize_per_channel_affine(
        weight, scale_K, torch.zeros_like(scale_K, dtype=torch.int32), 0, -max_level, max_level
    )


def _round_activation(x: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    scale = (high - low).clamp(min=1e-12) / _MAX_ACTIVATION_LEVEL
    zero_point = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, _MAX_ACTIVATION_LEVEL)
