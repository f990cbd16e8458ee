"""Measures the memory of each process that trains a GPT, by strategy, and estimates it for a billion parameters.

    .venv/bin/python benchmarks/training/memory.py            # trains a small GPT in one process, then in two
    .venv/bin/python benchmarks/training/memory.py --paper    # estimates a large GPT, and trains nothing

The processes communicate over gloo on this machine and share its cores, so the memory is meaningful and the rows per
second are not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.architectures.gpt import GptClassifier
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Gpt
from bloomery.models.networks.layers.attention import TransformerBlock, attention_heads
from bloomery.models.training.config import Loop, Strategy
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.distributed import parallelize
from bloomery.models.training.loop import Placement, TrainingHooks, TrainingState, train
from bloomery.models.training.optimization.learner import Learner, create_learner
from bloomery.models.training.process_group import SINGLE_PROCESS, ProcessGroup

ROOT = Path(__file__).resolve().parents[2]
STRATEGIES: tuple[Strategy, ...] = ("ddp", "fsdp", "tensor", "pipeline")
SMALL = Gpt(kind="gpt", width=384, num_layers=8, num_heads=6, dropout=0.0)
SMALL_LAYOUT = Layout(kind="tokens", shape=(128,), num_tokens=8_000)
LARGE = Gpt(kind="gpt", width=1792, num_layers=24, num_heads=16, dropout=0.0)
LARGE_NUM_TOKENS = 50_257
LARGE_LAYOUT = Layout(kind="tokens", shape=(2048,), num_tokens=LARGE_NUM_TOKENS)
NUM_STEPS, NUM_ROWS = 4, 16
MB, GB = 10**6, 10**9
PEAK, UTILIZATION = 989e12, 0.4  # FLOP/s of an H100 (dense bf16, data sheet); an assumption


def build_gpt(config: Gpt, layout: Layout, num_outputs: int) -> GptClassifier:
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=num_outputs))
    assert isinstance(network, GptClassifier)
    return network


def count_parameters(network: GptClassifier, size: int, strategy: str) -> list[int]:
    """Computes how many parameters each of `size` processes holds, by the rules of models/training/distributed."""
    total = num_parameters(network)
    blocks = [num_parameters(block) for block in network.decoder.blocks]
    match strategy:
        case "alone" | "ddp":
            return [total] * size
        case "fsdp":
            return [total // size] * size
        case "tensor":
            # Biases of `out` and `down` and the norms stay whole; the rest of a block is divided.
            width = network.decoder.norm.weight.numel()
            return [total - sum(block - 6 * width for block in blocks) * (size - 1) // size] * size
    owners = [index * size // len(blocks) for index in range(len(blocks))]
    parts = [sum(block for block, owner in zip(blocks, owners, strict=True) if owner == rank) for rank in range(size)]
    last = num_parameters(network.decoder.norm) + num_parameters(network.head)
    parts[0] += total - sum(blocks) - last
    parts[-1] += last
    return parts


def run_worker(strategy: Strategy | Literal["alone"]) -> None:
    """Trains the small network for a few steps in this process. Rank 0 prints the measurements of all processes."""
    if strategy == "alone":
        print(json.dumps([train_and_measure(SINGLE_PROCESS, create_learner)]))
        return
    dist.init_process_group("gloo")
    measurement = train_and_measure(
        parallelize.data_parallel_group(strategy),
        lambda network, loop: parallelize.parallelize(network, loop, strategy, torch.device("cpu")),
    )
    measurements = [measurement] * dist.get_world_size()
    dist.all_gather_object(measurements, measurement)
    if dist.get_rank() == 0:
        print(json.dumps(measurements))
    dist.destroy_process_group()


def train_and_measure(group: ProcessGroup, create: Callable[[nn.Module, Loop], Learner]) -> dict[str, float]:
    """Trains the small network. Returns the bytes that this process held, and its rows per second."""
    set_deterministic(0, 1)
    network = build_gpt(SMALL, SMALL_LAYOUT, num_outputs=10)
    x = torch.randint(1, 8_000, (NUM_STEPS * NUM_ROWS, 128), generator=torch.Generator().manual_seed(0)).float()
    y = x[:, 0].long() % 10
    train_rows, val_rows = (Examples(x[:num], y[:num], y[:num].numpy()) for num in (len(y), NUM_ROWS))
    state_bytes: list[int] = []
    times: list[float] = []

    def load(state: TrainingState) -> None:
        # After the step and before its gradients are cleared, parameters, gradients and optimizer state all exist.
        state.optimizer.register_step_post_hook(lambda *_: state_bytes.append(count_state_bytes(state)))

    train(
        network,
        TrainingData(train_rows, val_rows),
        Loop(epochs=1, batch_size=NUM_ROWS),
        placement=Placement(group=group, parallelize=create),
        hooks=TrainingHooks(load=load, save=lambda state: times.append(time.perf_counter())),
    )
    return {
        "state": max(state_bytes),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows_per_s": NUM_ROWS * (NUM_STEPS - 1) / (times[NUM_STEPS - 1] - times[0]),
    }


def count_state_bytes(state: TrainingState) -> int:
    """Returns the bytes of the parameters, gradients and optimizer state in this process."""
    tensors: list[torch.Tensor] = list(state.network.parameters())
    tensors += [parameter.grad for parameter in state.network.parameters() if parameter.grad is not None]
    tensors += [tensor for states in state.optimizer.state.values() for tensor in states.values()]
    local = [tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def measure() -> None:
    """Trains the small network with each strategy, and prints a table with a line for each process."""
    with torch.device("meta"):
        network = build_gpt(SMALL, SMALL_LAYOUT, num_outputs=10)
    print(f"{num_parameters(network):,} parameters\n")
    print(
        "| strategy | process | parameters (formula) | state at 16 bytes each | state, measured | peak RSS | rows/s |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for strategy in ("alone", *STRATEGIES):
        size = 1 if strategy == "alone" else 2
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        launcher = [sys.executable, *(torchrun if size > 1 else [])]
        completed = subprocess.run(
            [*launcher, __file__, "--worker", strategy],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if completed.returncode:
            raise SystemExit(completed.stderr[-3000:])
        measurements = json.loads(completed.stdout)
        counts = count_parameters(network, size, strategy)
        for rank, (measurement, count) in enumerate(zip(measurements, counts, strict=True)):
            print(
                f"| {strategy} | {rank} | {count:,} | {16 * count / MB:.1f} MB | {measurement['state'] / MB:.1f} MB "
                f"| {measurement['peak'] / MB:.0f} MB | {measurement['rows_per_s']:.1f} |",
                flush=True,
            )


def measure_saved_bytes(config: Gpt, num_steps: int) -> int:
    """Runs a block on one row under bf16 autocast, and returns the bytes that it keeps for its backward pass."""
    hidden = round(config.width * config.feed_forward)
    block = TransformerBlock(config.width, attention_heads(config), hidden, config.dropout, is_causal=True)
    storages: dict[int, torch.UntypedStorage] = {}

    def save(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if num_steps in tensor.shape:  # not a weight or its cast, since those do not grow with the rows
            storages[storage.data_ptr()] = storage
        return tensor

    x_BTW = torch.randn(1, num_steps, config.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        block(x_BTW)
    return sum(storage.nbytes() for storage in storages.values())


def print_estimate() -> None:
    """Prints an estimate of the memory and the throughput of the large network on 8 devices."""
    with torch.device("meta"):
        network = build_gpt(LARGE, LARGE_LAYOUT, num_outputs=1)
    size, steps, width, layers = 8, LARGE_LAYOUT.shape[0], LARGE.width, LARGE.num_layers
    total = num_parameters(network.decoder)
    saved = measure_saved_bytes(LARGE, steps) / steps
    # Every process keeps all inputs of norms and linear layers: two in float32, and four casts.
    saved_by_tensor = 16 * width + (saved - 16 * width) / size
    print(f"{total:,} parameters; a block saves {saved:,.0f} bytes per token, {saved / width:.1f} x width")
    print(
        "\n| strategy | parameters per process | state | saved by its blocks, per row |\n| --- | ---: | ---: | ---: |"
    )
    for strategy in STRATEGIES:
        counts = count_parameters(network, size, strategy)
        parameters = f"{min(counts):,}" if len(set(counts)) == 1 else f"{min(counts):,} to {max(counts):,}"
        activations = steps * layers * (saved_by_tensor if strategy == "tensor" else saved)
        activations /= size if strategy == "pipeline" else 1
        print(f"| `{strategy}` | {parameters} | {16 * max(counts) / GB:.2f} GB | {activations / GB:.2f} GB |")
    flops = 6 * total + 12 * layers * width * steps / 2  # causal attention covers half of the steps on average
    tokens_per_s = size * UTILIZATION * PEAK / flops
    print(
        f"\nlogits: {14 * LARGE_NUM_TOKENS * steps / GB:.2f} GB per row; weights cast to bf16: {2 * total / GB:.2f} GB"
    )
    print(f"FLOP per token: {flops:.3e}; tokens per second on {size} devices: {tokens_per_s:,.0f}")
    print(f"{20 * total / GB:.1f} billion tokens: {20 * total / tokens_per_s / 3600:.1f} hours")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="print the estimate for the large GPT, and train nothing")
    parser.add_argument("--worker", choices=("alone", *STRATEGIES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        run_worker(options.worker)
    elif options.paper:
        print_estimate()
    else:
        measure()


if __name__ == "__main__":
    main()
