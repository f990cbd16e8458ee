"""Prefetching batches in a thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bloomery.models.training.data.prefetch import prefetch


def test_batches_keep_their_order_and_are_prepared_in_another_thread() -> None:
    prepared: list[tuple[int, str]] = []

    def numbers() -> Iterator[int]:
        for number in range(6):
            prepared.append((number, threading.current_thread().name))
            yield number

    consumed = list(prefetch(numbers()))
    assert consumed == [number for number, _ in prepared] == list(range(6))
    assert threading.main_thread().name not in {name for _, name in prepared}


def test_an_error_in_the_thread_is_raised_in_the_consumer() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the file is gone")

    batches = prefetch(broken())
    assert next(batches) == 1
    with pytest.raises(OSError, match="the file is gone"):
        next(batches)


def test_stopping_early_leaves_no_thread() -> None:
    before = threading.active_count()
    batches = prefetch(iter(range(1000)))
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
