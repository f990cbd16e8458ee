"""Prometheus metrics of requests. All label values are known in advance, so their number is bounded."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from bloomery.deployments.endpoint.inference.micro_batcher import PredictionBatch

_SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
_STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 501, 503)


class Metrics:
    """The metrics of one process. BentoML sums them over its workers."""

    def __init__(self) -> None:
        requests = Counter("bloomery_requests_total", "Prediction requests by HTTP status", ["status"])
        # Labels are looked up in advance, since a lookup costs as much as an increment.
        self._requests = {status: requests.labels(str(status)) for status in _STATUSES}
        self._request_seconds = Histogram(
            "bloomery_request_seconds", "Time from the head of a request to its response", buckets=_SECONDS_BUCKETS
        )
        self._rows = Counter("bloomery_rows_total", "Predicted rows")
        self._batch_rows = Histogram("bloomery_batch_rows", "Rows per run of the network", buckets=_ROWS_BUCKETS)
        explanations = Counter("bloomery_explanations_total", "Explanation requests by HTTP status", ["status"])
        self._explanations = {status: explanations.labels(str(status)) for status in _STATUSES}
        self._explanation_seconds = Histogram(
            "bloomery_explanation_seconds",
            "Time from the head of a request to its explanations",
            buckets=_SECONDS_BUCKETS,
        )
        self._version = Gauge(
            "bloomery_version_info", "1 for the version that serves", ["version"], multiprocess_mode="max"
        )
        self._tag: str | None = None
        self._rejected_versions = Counter(
            "bloomery_versions_rejected_total", "Versions that the pointer named and the endpoint could not serve"
        )
        dropped = Counter("bloomery_rows_dropped_total", "Predicted rows that the log or the shadow missed", ["by"])
        self.count_dropped_by_log = dropped.labels("log").inc
        self.count_dropped_by_shadow = dropped.labels("shadow").inc

    def observe_request(self, status: int, seconds: float) -> None:
        self._requests[status].inc()
        self._request_seconds.observe(seconds)

    def observe_explanation(self, status: int, seconds: float) -> None:
        self._explanations[status].inc()
        self._explanation_seconds.observe(seconds)

    def observe_batch(self, batch: PredictionBatch) -> None:
        num_rows = len(batch.outputs)
        self._rows.inc(num_rows)
        self._batch_rows.observe(num_rows)

    def set_version(self, tag: str) -> None:
        if self._tag is not None:
            self._version.labels(self._tag).set(0)
        self._version.labels(tag).set(1)
        self._tag = tag

    def count_rejected_version(self) -> None:
        self._rejected_versions.inc()
