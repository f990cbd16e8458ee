"""Bit-for-bit reproducible computation."""

from __future__ import annotations

import os

import torch


def set_deterministic(seed: int, num_threads: int) -> str:
    """Makes this process reproducible bit for bit on CPUs of the same kind.

    Returns:
        What else the bits depend on: threads, instruction set and torch version. It is recorded with the weights.
    """
    # Otherwise a GPU's matrix products may differ between runs, and torch refuses them.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # Otherwise each new tensor is filled with NaN first, which makes a small CNN a sixth slower.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return f"{num_threads} thread(s), {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
