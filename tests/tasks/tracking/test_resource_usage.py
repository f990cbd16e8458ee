"""Resource usage of a stage: its CPU seconds, and its energy with and without a counter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bloomery.tasks.tracking import resource_usage
from bloomery.tasks.tracking.resource_usage import measure_usage


def use_counter(monkeypatch: pytest.MonkeyPatch, readings: Iterator[float]) -> None:
    """Replaces the energy counter of the machine by one that returns `readings`, in joules."""
    monkeypatch.setattr(resource_usage, "_start_meter", lambda: resource_usage._EnergyMeter(lambda: next(readings)))


def test_without_an_energy_counter_energy_is_estimated_from_cpu_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource_usage, "_start_meter", lambda: None)
    with measure_usage(use_gpu=True) as read_usage:
        start = resource_usage._cpu_seconds()
        while resource_usage._cpu_seconds() - start < 0.2:
            pass
        usage = read_usage()
    assert 0.2 <= usage.cpu_seconds < 5
    assert (usage.joules, usage.is_measured) == (usage.cpu_seconds * resource_usage.WATTS_PER_CORE, False)


def test_energy_is_the_difference_of_two_readings_of_the_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    use_counter(monkeypatch, iter([100.0, 130.0, 130.0]))
    with measure_usage() as read_usage:
        usage = read_usage()
    assert (usage.joules, usage.is_measured) == (30.0, True)


def test_energy_is_estimated_if_the_counter_fails_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail_after_first() -> Iterator[float]:
        yield 1.0
        raise OSError

    use_counter(monkeypatch, fail_after_first())
    with measure_usage() as read_usage:
        assert not read_usage().is_measured
