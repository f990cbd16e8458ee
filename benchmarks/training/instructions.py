"""What it costs that weights are the same bits on most machines, and what bfloat16 gains on a processor with AMX.

    .venv/bin/python benchmarks/training/instructions.py [--rounds 3]

Networks learn from random images of 28 x 28, in batches of 128 on one thread: a process for each way, in turns. Prints
milliseconds of a step (the median of those of each process, and of these) and the ratio to the default, which is AVX2.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ALL = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "ALL", "MKL_CBWR": "AVX512"}
WAYS = {
    "AVX2 (default), fp32": ({}, "fp32"),
    "all instructions, fp32": (ALL, "fp32"),
    "all instructions, precision: auto": (ALL, "auto"),
    "AVX2 (default), bf16": ({}, "bf16"),
}
NETWORKS = {
    "CNN 32, 64, 128": {"channels": (32, 64, 128), "hidden": 256},
    "CNN 64, 128, 256": {"channels": (64, 128, 256), "hidden": 256},
}
_STEPS = 12


def milliseconds(network_name: str, precision: str) -> float:
    """Of a step, the median after two."""
    import torch
    import torch.nn.functional as F

    from bloomery.data_contracts.records.tensor_layout import Layout
    from bloomery.models.networks.blueprint import Blueprint, build_network
    from bloomery.models.networks.config import Cnn
    from bloomery.models.training.config import Loop
    from bloomery.models.training.loop import use_channels_last
    from bloomery.models.training.optimization.learner import create_learner

    torch.set_num_threads(1)
    layout = Layout(kind="image", shape=(1, 28, 28))
    network = build_network(
        Blueprint(config=Cnn.model_validate({"kind": "cnn", **NETWORKS[network_name]}), layout=layout, num_outputs=10)
    )
    learn = create_learner(use_channels_last(network), Loop(epochs=1, precision=precision))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x = torch.randn(128, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (128,))
    taken = []
    for _ in range(_STEPS):
        begin = time.perf_counter()
        learn(x, lambda outputs, rows: F.cross_entropy(outputs.float(), y[rows], reduction="sum"), float(len(x)))
        optimizer.step()
        optimizer.zero_grad()
        taken.append(1000 * (time.perf_counter() - begin))
    return statistics.median(taken[2:])


def main() -> None:
    from bloomery.tasks.infrastructure.device import instruction_set

    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    chosen = asked.parse_args()
    if chosen.one:
        print(json.dumps(milliseconds(*chosen.one)))
        return
    for network in NETWORKS:
        found: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(chosen.rounds):
            for way, (variables, precision) in WAYS.items():
                command = [sys.executable, __file__, "--one", network, precision]
                environment = os.environ | instruction_set() | variables
                told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                found[way].append(json.loads(told.stdout))
        base = statistics.median(found[next(iter(WAYS))])
        print(f"\n### {network}\n\n| way | ms a step | of the default |\n| --- | ---: | ---: |")
        for way, times in found.items():
            print(f"| {way} | {statistics.median(times):.0f} ({min(times):.0f}–{max(times):.0f}) | ", end="")
            print(f"{statistics.median(times) / base:.2f} |", flush=True)


if __name__ == "__main__":
    main()
