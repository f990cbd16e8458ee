"""The cards of a machine as slots, so that two trainings do not share one unless a recipe says so."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from models.training.config import Training
from tasks.fitting import device_of

LIMIT = "gpu"  # a global concurrency limit of Prefect's, which `bloomery up` makes with a slot for each card
_LEASE_S = 60  # after which the slots of a dead training are free


def num_slots(training: Training, stated: int) -> int:
    """How many slots the training takes: none on a processor; one for each of its cards, and at least `stated`."""
    if stated == 0 or device_of(training) != "cuda":
        return 0
    return max(stated, training.devices)


def with_slots(train: Callable[..., Any], stated: int) -> Callable[..., Any]:
    """The stage `train` as a task that waits until its slots are free; where Prefect knows no such limit, for none."""

    @functools.wraps(train)
    def run(dataset: Any, model: Any, training: Training, *more: Any) -> Any:
        occupied = num_slots(training, stated)
        if occupied == 0:
            return train(dataset, model, training, *more)
        from prefect.concurrency.sync import concurrency

        # Not strict: a server that is away for a while must not cost hours of training.
        with concurrency(LIMIT, occupy=occupied, lease_duration=_LEASE_S, strict=False):
            return train(dataset, model, training, *more)

    return run
