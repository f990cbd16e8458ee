"""How much arithmetic training needs, and how much of it the device could do.

Shapes: B rows.
"""

from __future__ import annotations

import copy
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

_SIDE = 8192  # of the matrices that are multiplied to see what the device can do


def count_flops_per_row(network: nn.Module, x: torch.Tensor) -> float:
    """Floating-point operations of matrix products and convolutions, forward and backward, for one row of `x` (B, ...).

    A multiplication with its addition counts as two. `network` is not changed.
    """
    # Fused kernels hide what they compute from the counter.
    fast_path, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    torch.backends.mkldnn.set_flags(False)
    try:
        own = copy.deepcopy(network).train()
        for module in own.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout):
                module.eval()
        with FlopCounterMode(display=False) as counter:
            own(x).float().sum().backward()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch.backends.mkldnn.set_flags(onednn)
    return counter.get_total_flops() / len(x)


def peak_flops(device: torch.device, precision: torch.dtype) -> float:
    """Floating-point operations a second that `device`, a GPU, reaches in products of large matrices."""
    left, right = (torch.randn(_SIDE, _SIDE, device=device, dtype=precision) for _ in range(2))
    for _ in range(3):
        left @ right
    torch.cuda.synchronize(device)
    start, num_products = time.perf_counter(), 10
    for _ in range(num_products):
        left @ right
    torch.cuda.synchronize(device)
    return 2 * _SIDE**3 * num_products / (time.perf_counter() - start)
