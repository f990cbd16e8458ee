"""Files timed side by side. No test asks how long anything took."""

from __future__ import annotations

from models.compression.latency import compare


def test_every_file_is_compared_with_the_baseline(exported, quantized, parts):
    files = {"fp32": exported, "int8": quantized, "again": exported}
    timed = compare(files, parts.test.x[:3].numpy(), baseline="fp32", rounds=5)
    assert list(timed) == list(files)
    assert timed["fp32"].ratio == 1
    for latency in timed.values():
        assert latency.batch_size == 3
        assert 0 < latency.p50_ms <= latency.p99_ms
        assert latency.ratio > 0


def test_any_file_can_be_the_baseline(exported, quantized, parts):
    timed = compare({"fp32": exported, "int8": quantized}, parts.test.x[:1].numpy(), baseline="int8", rounds=1)
    assert timed["int8"].ratio == 1
    assert timed["fp32"].p50_ms == timed["fp32"].p99_ms
