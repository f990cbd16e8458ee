"""GPU slots, which keep two trainings off the same GPU unless a recipe allows it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from bloomery.models.compression.config import Compression
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.device import select_device

GPU_LIMIT = "gpu"  # a global concurrency limit in Prefect; `bloomery up` creates it with one slot for each GPU
_LEASE_S = 60  # the slots of a killed training are released after this time

P = ParamSpec("P")
R = TypeVar("R")


def count_gpu_slots(config: Training | Compression, requested: int) -> int:
    """Returns 0 on a CPU. A training takes one slot for each of its GPUs, and at least `requested`."""
    if requested == 0 or select_device(config.device) != "cuda":
        return 0
    return max(requested, config.devices) if isinstance(config, Training) else 1


def with_gpu_slots(stage: Callable[P, R], requested: int) -> Callable[P, R]:
    """Returns a stage that waits until its GPU slots are free. One of its arguments configures the training.

    It does not wait if Prefect has no such limit.
    """

    @functools.wraps(stage)
    def run(*arguments: P.args, **options: P.kwargs) -> R:
        (config,) = (argument for argument in arguments if isinstance(argument, Training | Compression))
        occupied = count_gpu_slots(config, requested)
        if occupied == 0:
            return stage(*arguments, **options)
        from prefect.concurrency.sync import concurrency

        # Not strict: a server that is unreachable for a while must not cost hours of training.
        with concurrency(GPU_LIMIT, occupy=occupied, lease_duration=_LEASE_S, strict=False):
            return stage(*arguments, **options)

    return run
