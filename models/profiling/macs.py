"""Counts multiply-accumulate operations (MACs)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence


def count_macs(network: nn.Module, x: torch.Tensor) -> int:
    """The MACs of convolutions, linear and recurrent layers for one row of `x` (B, ...).

    The weightless products of attention are not counted.
    """
    from torch_pruning.utils import op_counter

    # The package's own counter takes the steps of a recurrent layer for rows, and the values of a step for steps.
    op_counter.CUSTOM_MODULES_MAPPING = dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), _count_recurrent)
    return int(op_counter.count_ops_and_params(network, x[:1])[0])


def _count_recurrent(layer: nn.RNNBase, inputs: tuple[Any, ...], outputs: Any) -> None:
    from torch_pruning.utils.op_counter import rnn_flops_counter_hook

    steps = inputs[0]
    if isinstance(steps, PackedSequence):
        steps = steps.data.unsqueeze(0)
    rnn_flops_counter_hook(layer, ((steps,),), outputs)
