"""Prepares batches in advance, so that a GPU does not wait for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_Batch = TypeVar("_Batch")
_NUM_PREFETCHED = 2


def prefetch(batches: Iterator[_Batch]) -> Iterator[_Batch]:
    """Yields the same batches in order, while a thread prepares the next ones."""
    with ThreadPoolExecutor(1, thread_name_prefix="feeding") as thread:
        waiting: deque[Future[_Batch | None]] = deque(
            thread.submit(next, batches, None) for _ in range(_NUM_PREFETCHED)
        )
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, batches, None))
            yield batch
