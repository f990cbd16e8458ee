"""What each of several processes holds while a GPT is trained, by strategy; and on paper for a billion parameters.

    .venv/bin/python benchmarks/training/memory.py            # trains a small one: alone, then in two processes
    .venv/bin/python benchmarks/training/memory.py --paper    # reckons for a large one, and trains nothing

The processes talk by gloo on this machine. They share its cores, so only the memory is of use; rows a second are told
beside it.
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

import torch
import torch.distributed as dist
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters
from bloomery.models.networks.config import Gpt
from bloomery.models.networks.layers.attention import TransformerBlock
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
LARGE_LAYOUT = Layout(kind="tokens", shape=(2048,), num_tokens=50_257)
NUM_STEPS, NUM_ROWS = 4, 16
MB, GB = 10**6, 10**9
PEAK, UTILIZATION = 989e12, 0.4  # FLOP/s of an H100 (dense bf16, data sheet); an assumption


def held(network: nn.Module, size: int, strategy: str) -> list[int]:
    """How many parameters each of `size` processes holds, by the rules of models/training: the formula."""
    whole = num_parameters(network)
    blocks = [num_parameters(block) for block in network.decoder.blocks]
    match strategy:
        case "alone" | "ddp":
            return [whole] * size
        case "fsdp":
            return [whole // size] * size
        case "tensor":
            # Biases of `out` and `down` and the norms stay whole, the rest of a block is cut.
            width = network.decoder.norm.weight.numel()
            return [whole - sum(block - 6 * width for block in blocks) * (size - 1) // size] * size
    owner = [at * size // len(blocks) for at in range(len(blocks))]
    parts = [sum(block for block, at in zip(blocks, owner, strict=True) if at == rank) for rank in range(size)]
    behind = num_parameters(network.decoder.norm) + num_parameters(network.head)
    parts[0] += whole - sum(blocks) - behind
    parts[-1] += behind
    return parts


def work(strategy: str) -> None:
    """Train the small network for a few steps in this process, and tell what it held; the first tells of all."""
    if strategy == "alone":
        print(json.dumps([trained(SINGLE_PROCESS, create_learner)]))
        return
    dist.init_process_group("gloo")
    told = trained(
        parallelize.data_parallel_group(strategy),
        lambda network, loop: parallelize.parallelize(network, loop, strategy, torch.device("cpu")),
    )
    all_told = [told] * dist.get_world_size()
    dist.all_gather_object(all_told, told)
    if dist.get_rank() == 0:
        print(json.dumps(all_told))
    dist.destroy_process_group()


def trained(group: ProcessGroup, create: Callable[[nn.Module, Loop], Learner]) -> dict[str, float]:
    """What this process held of the small network, in bytes, and how fast it was."""
    set_deterministic(0, 1)
    network = build_network(Blueprint(config=SMALL, layout=SMALL_LAYOUT, num_outputs=10))
    x = torch.randint(1, 8_000, (NUM_STEPS * NUM_ROWS, 128), generator=torch.Generator().manual_seed(0)).float()
    y = x[:, 0].long() % 10
    rows, few = (Examples(x[:num], y[:num], y[:num].numpy()) for num in (len(y), NUM_ROWS))
    state_bytes: list[int] = []
    times: list[float] = []

    def load(state: TrainingState) -> None:
        # Between the step and the end of its gradients, all three are there.
        state.optimizer.register_step_post_hook(lambda *_: state_bytes.append(bytes_of(state)))

    train(
        network,
        TrainingData(rows, few),
        Loop(epochs=1, batch_size=NUM_ROWS),
        placement=Placement(group=group, parallelize=create),
        hooks=TrainingHooks(load=load, save=lambda state: times.append(time.perf_counter())),
    )
    return {
        "state": max(state_bytes),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows_per_s": NUM_ROWS * (NUM_STEPS - 1) / (times[NUM_STEPS - 1] - times[0]),
    }


def bytes_of(state: TrainingState) -> int:
    """Of the parameters, gradients and optimizer state that this process holds."""
    held_here = list(state.network.parameters())
    held_here += [parameter.grad for parameter in held_here if parameter.grad is not None]
    held_here += [one for of_parameter in state.optimizer.state.values() for one in of_parameter.values()]
    local = [one.to_local() if hasattr(one, "to_local") else one for one in held_here]
    return sum(one.numel() * one.element_size() for one in local)


def measured() -> None:
    """Print a table of the small network, with a line for each strategy."""
    with torch.device("meta"):
        network = build_network(Blueprint(config=SMALL, layout=SMALL_LAYOUT, num_outputs=10))
    print(f"{num_parameters(network):,} parameters\n")
    print("| strategy | process | parameters (formula) | state: 16 bytes each | state, measured | peak RSS | rows/s |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for strategy in ("alone", *STRATEGIES):
        size = 1 if strategy == "alone" else 2
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={size}"]
        started = [sys.executable, *(torchrun if size > 1 else [])]
        ended = subprocess.run(
            [*started, __file__, "--work", strategy],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode:
            raise SystemExit(ended.stderr[-3000:])
        all_told = json.loads(ended.stdout)
        for rank, (one, number) in enumerate(zip(all_told, held(network, size, strategy), strict=True)):
            print(
                f"| {strategy} | {rank} | {number:,} | {16 * number / MB:.1f} MB | {one['state'] / MB:.1f} MB "
                f"| {one['peak'] / MB:.0f} MB | {one['rows_per_s']:.1f} |",
                flush=True,
            )


def saved_bytes(config: Gpt, num_steps: int) -> int:
    """Bytes that one block keeps for its backward pass under bf16 autocast, for one row, counted as it runs."""
    hidden = round(config.width * config.feed_forward)
    block = TransformerBlock(config.width, config.num_heads, hidden, config.dropout, is_causal=True)
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if num_steps in tensor.shape:  # and not a weight or its cast, which do not grow with the rows
            kept[storage.data_ptr()] = storage
        return tensor

    x_BTW = torch.randn(1, num_steps, config.width, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        block(x_BTW)
    return sum(storage.nbytes() for storage in kept.values())


def paper() -> None:
    """Print what the large network needs on 8 devices."""
    with torch.device("meta"):
        network = build_network(Blueprint(config=LARGE, layout=LARGE_LAYOUT, num_outputs=1))
    size, steps, width, layers = 8, LARGE_LAYOUT.shape[0], LARGE.width, LARGE.num_layers
    num = num_parameters(network.decoder)
    saved = saved_bytes(LARGE, steps) / steps
    # The inputs of norms and of linear maps stay whole in every process: two in float32, four times a cast.
    saved_cut = 16 * width + (saved - 16 * width) / size
    print(f"{num:,} parameters; a block keeps {saved:,.0f} bytes a token, {saved / width:.1f} x width")
    print("\n| strategy | parameters of a process | state | kept by its blocks, a row |\n| --- | ---: | ---: | ---: |")
    for strategy in STRATEGIES:
        numbers = held(network, size, strategy)
        told = f"{min(numbers):,}" if len(set(numbers)) == 1 else f"{min(numbers):,} to {max(numbers):,}"
        kept = steps * layers * (saved_cut if strategy == "tensor" else saved)
        kept /= size if strategy == "pipeline" else 1
        print(f"| `{strategy}` | {told} | {16 * max(numbers) / GB:.2f} GB | {kept / GB:.2f} GB |")
    flops = 6 * num + 12 * layers * width * steps / 2  # a causal step looks at half of the others on average
    tokens_per_s = size * UTILIZATION * PEAK / flops
    print(
        f"\nlogits: {14 * LARGE_LAYOUT.num_tokens * steps / GB:.2f} GB a row, casts of weights: {2 * num / GB:.2f} GB"
    )
    print(f"FLOP a token: {flops:.3e}; tokens a second on {size}: {tokens_per_s:,.0f}")
    print(f"{20 * num / GB:.1f} billion tokens: {20 * num / tokens_per_s / 3600:.1f} hours")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--paper", action="store_true")
    parser.add_argument("--work", choices=("alone", *STRATEGIES))
    stated = parser.parse_args()
    if stated.work is not None:
        work(stated.work)
    elif stated.paper:
        paper()
    else:
        measured()


if __name__ == "__main__":
    main()
