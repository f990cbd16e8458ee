"""Latency measurement. No test asserts a duration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.models.profiling.latency import ComparedFiles, compare_latency, summarise
from tests.examples import examples


def test_every_file_is_compared_with_the_baseline(exported, quantized, splits):
    paths = {"fp32": exported, "int8": quantized, "again": exported}
    batches = [splits.test.x[:size].numpy() for size in (3, 1)]
    timed = compare_latency(ComparedFiles(paths, "fp32", row_by_row={"int8"}), batches, rounds=5)
    assert list(timed) == list(paths)
    for latency in timed["fp32"]:
        assert (latency.ratio.low, latency.ratio.value, latency.tail_ratio.high) == (1, 1, 1)
    for latencies in timed.values():
        assert [(item.batch_size, item.num_rounds) for item in latencies] == [(3, 5), (1, 5)]
    for latency in itertools.chain.from_iterable(timed.values()):
        assert 0 < latency.p50_ms <= latency.p90_ms <= latency.p95_ms <= latency.p99_ms
        assert 0 < latency.ratio.low <= latency.ratio.value <= latency.ratio.high


def test_any_file_can_be_the_baseline(exported, quantized, splits):
    files = ComparedFiles({"fp32": exported, "int8": quantized}, baseline="int8")
    timed = compare_latency(files, [splits.test.x[:1].numpy()], rounds=1)
    assert timed["int8"][0].ratio.value == 1
    assert timed["fp32"][0].p50_ms == timed["fp32"][0].p99_ms


def test_caches_of_another_file_do_not_count(exported, quantized, splits, monkeypatch):
    clock, last = 0.0, None

    def run_batch(runtime: object, *_: object) -> None:
        nonlocal clock, last
        clock, last = clock + (0.001 if runtime is last else 1.0), runtime

    monkeypatch.setattr("bloomery.models.profiling.latency.run_batch", run_batch)
    monkeypatch.setattr("bloomery.models.profiling.latency.time.perf_counter", lambda: clock)
    files = ComparedFiles({"fp32": exported, "int8": quantized, "again": exported}, baseline="fp32")
    timed = compare_latency(files, [splits.test.x[:1].numpy()], rounds=5)
    assert [latency.p99_ms for (latency,) in timed.values()] == pytest.approx([1, 1, 1])


@settings(max_examples=examples(10), deadline=None)
@given(st.floats(0.1, 10), st.integers(0, 100))
def test_a_constant_ratio_is_measured_in_any_noise(factor, seed):
    baseline = np.random.default_rng(seed).lognormal(-9, 1, size=60)
    latency = summarise(factor * baseline, baseline, 1)
    for ratio in (latency.ratio, latency.tail_ratio):
        assert (ratio.low, ratio.value, ratio.high) == pytest.approx((factor, factor, factor))
    assert latency.p99_ms == pytest.approx(1e3 * factor * np.percentile(baseline, 99))
    assert latency.percentile_ms(50) == latency.p50_ms


def test_intervals_narrow_with_more_rounds_and_widen_with_long_disturbances():
    random = np.random.default_rng(0)

    def width(seconds, baseline):
        ratio = summarise(seconds, baseline, 1).ratio
        return ratio.high - ratio.low

    def noise(size):
        return random.lognormal(0, 0.2, size)

    wide, narrow = width(noise(50), noise(50)), width(noise(1000), noise(1000))
    assert narrow < 0.5 * wide
    disturbances = np.repeat(random.lognormal(0, 0.2, 10), 100)  # each disturbance lasts 100 rounds
    assert width(disturbances, np.ones(1000)) > 2 * narrow


def test_equal_times_have_equal_intervals():
    random = np.random.default_rng(1)
    seconds, baseline = random.lognormal(size=(2, 100))
    assert summarise(seconds, baseline, 1) == summarise(seconds, baseline, 1)


def test_the_interval_contains_the_ratio_nearly_always():
    random = np.random.default_rng(2)
    hits = 0
    for _ in range(40):
        baseline = random.lognormal(-9, 0.1, 60)
        ratio = summarise(0.8 * baseline * random.lognormal(0, 0.3, 60), baseline, 1).ratio
        hits += ratio.low <= 0.8 <= ratio.high
    assert hits >= 34
