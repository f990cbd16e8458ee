"""Batches that a thread makes ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from bloomery.models.training.data.prefetch import prefetch


def test_batches_keep_their_order_and_are_prepared_in_another_thread() -> None:
    made: list[tuple[int, str]] = []

    def numbers() -> Iterator[int]:
        for number in range(6):
            made.append((number, threading.current_thread().name))
            yield number

    seen = list(prefetch(numbers()))
    assert seen == [number for number, _ in made] == list(range(6))
    assert threading.main_thread().name not in {name for _, name in made}


def test_an_error_in_the_thread_is_raised_in_the_consumer() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the file is gone")

    taken = prefetch(broken())
    assert next(taken) == 1
    with pytest.raises(OSError, match="the file is gone"):
        next(taken)


def test_stopping_early_leaves_no_thread() -> None:
    before = threading.active_count()
    taken = prefetch(iter(range(1000)))
    next(taken)
    taken.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
