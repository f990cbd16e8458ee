"""What was measured of a candidate: latency and energy."""

from __future__ import annotations

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.records.intervals import Interval
from bloomery.data_contracts.records.serving_device import OptionalGpuDevice


class Latency(Document):
    """Milliseconds for one batch in ONNX Runtime, and ratios to the fp32 candidate's in the same rounds.

    A ratio below 1 is faster, and has a 95% interval. On a GPU, the copies to it and back are included.
    """

    batch_size: int
    num_rounds: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    ratio: Interval  # the median over rounds
    tail_ratio: Interval  # of the 99th percentiles
    device: OptionalGpuDevice = None  # that computed, or None for the processor

    @property
    def where(self) -> str:
        """` on cuda` for a GPU, and nothing for the processor."""
        return "" if self.device is None else f" on {self.device}"

    def percentile_ms(self, percentile: int) -> float:
        """The latency at a percentile: 50, 90, 95 or 99."""
        return {50: self.p50_ms, 90: self.p90_ms, 95: self.p95_ms, 99: self.p99_ms}[percentile]


class Energy(Document):
    """Joules of the CPUs for one batch in ONNX Runtime, and the ratio to the fp32 candidate's in the same rounds.

    They include the idle power and other processes on the CPUs.
    """

    batch_size: int
    num_rounds: int
    p50_j: float
    ratio: Interval  # the median over rounds, with its 95% interval
