"""Measures the cost of restricting training to AVX2, and the gain of bfloat16 on a processor with AMX.

    .venv/bin/python benchmarks/training/instructions.py [--rounds 3]

By default training uses AVX2 instructions only, so that weights are equal bit for bit on most machines. Networks learn
from random images of 28 x 28, in batches of 128 on one thread. Every setting runs in a process of its own, in turns.
The script prints the milliseconds per step (the median over the rounds of each process's median) and the ratio to the
default.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

ALL_INSTRUCTIONS = {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "ALL", "MKL_CBWR": "AVX512"}
SETTINGS = {
    "AVX2 (default), fp32": ({}, "fp32"),
    "all instructions, fp32": (ALL_INSTRUCTIONS, "fp32"),
    "all instructions, precision: auto": (ALL_INSTRUCTIONS, "auto"),
    "AVX2 (default), bf16": ({}, "bf16"),
}
NETWORKS = {
    "CNN 32, 64, 128": {"channels": (32, 64, 128), "hidden": 256},
    "CNN 64, 128, 256": {"channels": (64, 128, 256), "hidden": 256},
}
_NUM_STEPS = 12
_NUM_WARM_UP_STEPS = 2


def measure_step_ms(network_name: str, precision: Any) -> float:
    """Returns the median duration of a step in milliseconds, after warm-up steps."""
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
    learner = create_learner(use_channels_last(network), Loop(epochs=1, precision=precision))
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x = torch.randn(128, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    y = torch.randint(10, (128,))
    milliseconds = []
    for _ in range(_NUM_STEPS):
        start_s = time.perf_counter()
        learner(x, lambda outputs, rows: F.cross_entropy(outputs.float(), y[rows], reduction="sum"), float(len(x)))
        optimizer.step()
        optimizer.zero_grad()
        milliseconds.append(1000 * (time.perf_counter() - start_s))
    return statistics.median(milliseconds[_NUM_WARM_UP_STEPS:])


def main() -> None:
    from bloomery.tasks.infrastructure.device import instruction_set

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--single", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.single:
        print(json.dumps(measure_step_ms(*options.single)))
        return
    for network in NETWORKS:
        step_ms: dict[str, list[float]] = {name: [] for name in SETTINGS}
        for _ in range(options.rounds):
            for name, (variables, precision) in SETTINGS.items():
                command = [sys.executable, __file__, "--single", network, precision]
                environment = os.environ | instruction_set() | variables
                process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                step_ms[name].append(json.loads(process.stdout))
        baseline = statistics.median(step_ms[next(iter(SETTINGS))])
        print(f"\n### {network}\n\n| setting | ms per step | relative to the default |\n| --- | ---: | ---: |")
        for name, times in step_ms.items():
            print(f"| {name} | {statistics.median(times):.0f} ({min(times):.0f}–{max(times):.0f}) | ", end="")
            print(f"{statistics.median(times) / baseline:.2f} |", flush=True)


if __name__ == "__main__":
    main()
