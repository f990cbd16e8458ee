"""What makes a computation repeat bit for bit."""

from __future__ import annotations

import os

import torch


def set_deterministic(seed: int, num_threads: int) -> str:
    """Make what follows in this process repeat bit for bit on a processor of the same kind.

    Returns:
        What else the bits depend on: threads and instruction set, to be recorded with the weights.
    """
    # Without this a GPU's matrix products may differ from run to run, and torch refuses them.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    # Else each new tensor is filled with NaN before it is written, which costs a small CNN a sixth of its pace.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return f"{num_threads} thread(s), {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"
