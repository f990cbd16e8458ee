"""What an answer costs: multiplications, parameters, time."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from models.compression.config import Cost
from models.compression.latency import compare
from models.export import export
from models.networks.blueprint import num_parameters

_ROUNDS = 200


def num_macs(network: nn.Module, x: torch.Tensor) -> int:
    """Multiplications with an addition for one row of `x` (B, ...): of convolutions, linear and recurrent layers.

    What attention does without weights is not counted.
    """
    from torch_pruning.utils import count_ops_and_params

    return int(count_ops_and_params(network, x[:1])[0])


@contextmanager
def costing(cost: Cost, network: nn.Module, x: torch.Tensor) -> Iterator[Callable[[nn.Module], float]]:
    """Tells of another network what it costs for rows like `x` (B, ...), as a share of what `network` costs.

    The latency is that of one row in ONNX Runtime, both timed in turns.
    """
    if cost == "parameters":
        yield lambda other: num_parameters(other) / num_parameters(network)
        return
    if cost == "macs":
        whole = num_macs(network, x)
        yield lambda other: num_macs(other, x) / whole
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("network", "other")}
        export(network, x, files["network"])

        def of_time(other: nn.Module) -> float:
            export(other, x, files["other"])
            return compare(files, [x[:1].numpy()], baseline="network", rounds=_ROUNDS)["other"][0].ratio.value

        yield of_time
