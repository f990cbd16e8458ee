"""What an answer costs: multiplications, parameters, time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from bloomery.models.compression.config import Cost
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.networks.blueprint import num_parameters
from bloomery.models.profiling.latency import compare_latency

_ROUNDS = 200


def count_macs(network: nn.Module, x: torch.Tensor) -> int:
    """Multiplications with an addition for one row of `x` (B, ...): of convolutions, linear and recurrent layers.

    What attention does without weights is not counted.
    """
    from torch_pruning.utils import op_counter

    # The counter's own takes the steps of a recurrent layer for rows, and the values of a step for steps.
    op_counter.CUSTOM_MODULES_MAPPING = dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), _count_recurrent)
    return int(op_counter.count_ops_and_params(network, x[:1])[0])


def _count_recurrent(layer: nn.RNNBase, given: tuple[Any, ...], answered: Any) -> None:
    from torch_pruning.utils.op_counter import rnn_flops_counter_hook

    steps = given[0]
    if isinstance(steps, PackedSequence):
        steps = steps.data.unsqueeze(0)
    rnn_flops_counter_hook(layer, ((steps,),), answered)


@contextmanager
def relative_cost(cost: Cost, network: nn.Module, x: torch.Tensor) -> Iterator[Callable[[nn.Module], float]]:
    """Tells of another network what it costs for rows like `x` (B, ...), as a share of what `network` costs.

    The latency is that of one row in ONNX Runtime, both timed in turns.
    """
    if cost == "parameters":
        yield lambda other: num_parameters(other) / num_parameters(network)
        return
    if cost == "macs":
        whole = count_macs(network, x)
        yield lambda other: count_macs(other, x) / whole
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("network", "other")}
        export_onnx(network, x, files["network"])

        def of_time(other: nn.Module) -> float:
            export_onnx(other, x, files["other"])
            return compare_latency(files, [x[:1].numpy()], baseline="network", rounds=_ROUNDS)["other"][0].ratio.value

        yield of_time
