"""The pruning ratio that brings a cost down to its target: MACs, parameters or latency."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.config import Cost
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.networks.blueprint import num_parameters
from bloomery.models.profiling.latency import ComparedFiles, compare_latency
from bloomery.models.profiling.macs import count_macs

_LATENCY_ROUNDS = 200
_BISECTIONS = 6  # so the ratio is found to 1/64


@contextmanager
def relative_cost(cost: Cost, network: nn.Module, x: torch.Tensor) -> Iterator[Callable[[nn.Module], float]]:
    """A function that measures another network's cost for rows like `x` (B, ...) as a share of that of `network`.

    The latency is that of one row in ONNX Runtime; both networks are timed in turns.
    """
    if cost == "parameters":
        yield lambda pruned: num_parameters(pruned) / num_parameters(network)
        return
    if cost == "macs":
        baseline_macs = count_macs(network, x)
        yield lambda pruned: count_macs(pruned, x) / baseline_macs
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{name}.onnx" for name in ("network", "pruned")}
        export_onnx(network, x, paths["network"])

        def measure(pruned: nn.Module) -> float:
            export_onnx(pruned, x, paths["pruned"])
            files = ComparedFiles(paths, baseline="network")
            latencies = compare_latency(files, [x[:1].numpy()], rounds=_LATENCY_ROUNDS)
            return latencies["pruned"][0].ratio.value

        yield measure


def find_pruning_ratio(cost: Cost, target: float, cost_at: Callable[[float], float]) -> float:
    """The smallest ratio at which the relative cost is at most `target`, to 1/64, by bisection over `cost_at`.

    Raises:
        RecipeInvalid: no ratio reaches the target.
    """
    low, high = 0.0, 1.0 - 2.0**-_BISECTIONS
    min_cost = cost_at(high)
    if min_cost > target:
        raise RecipeInvalid(
            f"pruned as far as possible, the {cost} are {min_cost:.3g} of those of the trained network",
            required=f"at most {target:g}, the target",
            where="compression.candidates of the recipe",
            remedy="raise the target, add `structures`, or let a `student` replace the network",
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if cost_at(middle) <= target else (middle, high)
    return high
