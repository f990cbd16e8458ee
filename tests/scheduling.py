"""A pytest plugin that orders the tests and distributes them among the workers of pytest-xdist."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

ROOT = Path(__file__).resolve().parent.parent
LONGEST = ROOT / "tests" / "longest.txt"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keeps the garbage collector from examining the imported modules and the tests: all of them stay in use."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the longest files first, then others with slow tests, so that all workers end at about the same time.

    pytest-xdist keeps this order with --no-loadscope-reorder; otherwise it starts with the files of most tests.
    """
    positions = {ROOT / line: position for position, line in enumerate(LONGEST.read_text().split())}
    slow = {item.path for item in items if item.get_closest_marker("slow") is not None}
    items.sort(key=lambda item: (positions.get(item.path, len(positions)), item.path not in slow))  # stable in a file


class SingleSparkScheduling(LoadFileScheduling):
    """Gives each worker one file at a time, and all tests that use Spark in their process to the same worker."""

    def _split_scope(self, nodeid: str) -> str:
        return "spark" if "::test_spark_" in nodeid else super()._split_scope(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SingleSparkScheduling:
    return SingleSparkScheduling(config, log)
