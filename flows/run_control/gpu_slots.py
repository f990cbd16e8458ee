"""The cards of a machine as slots, so that two trainings do not share one unless a recipe says so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from bloomery.models.compression.config import Compression
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.device import select_device

LIMIT = "gpu"  # a global concurrency limit of Prefect's, which `bloomery up` makes with a slot for each card
_LEASE_S = 60  # after which the slots of a dead training are free


def num_slots(learning: Training | Compression, stated: int) -> int:
    """How many slots are taken: none on a processor; a training's as many as its cards, and at least `stated`."""
    if stated == 0 or select_device(learning.device) != "cuda":
        return 0
    return max(stated, learning.devices) if isinstance(learning, Training) else 1


def with_slots(stage: Callable[..., Any], stated: int) -> Callable[..., Any]:
    """The stage, in which networks learn as one of its arguments says, as a task that waits until its slots are free.

    Where Prefect knows no such limit it waits for none.
    """

    @functools.wraps(stage)
    def run(*arguments: Any) -> Any:
        (learning,) = (one for one in arguments if isinstance(one, Training | Compression))
        occupied = num_slots(learning, stated)
        if occupied == 0:
            return stage(*arguments)
        from prefect.concurrency.sync import concurrency

        # Not strict: a server that is away for a while must not cost hours of training.
        with concurrency(LIMIT, occupy=occupied, lease_duration=_LEASE_S, strict=False):
            return stage(*arguments)

    return run
