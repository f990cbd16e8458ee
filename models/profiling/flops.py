"""Counts the FLOPs that training needs, and measures the peak FLOP/s of a device."""

from __future__ import annotations

import copy
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_MATRIX_SIZE = 8192
_NUM_WARMUP_PRODUCTS, _NUM_PRODUCTS = 3, 10


def count_flops_per_row(network: nn.Module, x: torch.Tensor) -> float:
    """FLOPs of matrix products and convolutions, forward and backward, for one row of `x` (B, ...).

    A multiplication with its addition counts as two. `network` does not change.
    """
    # Fused kernels hide their operations from the counter.
    fast_path, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.set_flags(False)
    try:
        own_network = copy.deepcopy(network).train()
        for module in own_network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()
        with FlopCounterMode(display=False) as counter:
            own_network(x).float().sum().backward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.backends.mkldnn.set_flags(onednn)
    return counter.get_total_flops() / len(x)


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """FLOP/s that `device`, a GPU, reaches in products of large matrices."""
    left, right = (torch.randn(_MATRIX_SIZE, _MATRIX_SIZE, device=device, dtype=precision) for _ in range(2))
    for _ in range(_NUM_WARMUP_PRODUCTS):
        left @ right
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(_NUM_PRODUCTS):
        left @ right
    torch.cuda.synchronize(device)
    return 2 * _MATRIX_SIZE**3 * _NUM_PRODUCTS / (time.perf_counter() - start)
