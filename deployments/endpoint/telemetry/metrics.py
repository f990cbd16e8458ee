"""What `/metrics` tells of requests. Label values are those that are known beforehand, so the page does not grow."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from bloomery.deployments.endpoint.inference.micro_batcher import Answered

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384)
_STATUSES = (200, 400, 401, 403, 404, 405, 408, 413, 415, 422, 429, 500, 501, 503)


class Measures:
    """Prometheus' figures of one process, which BentoML adds up over its workers."""

    def __init__(self) -> None:
        requests = Counter(
            "bloomery_requests_total", "Requests for predictions, by the status that was answered", ["status"]
        )
        # Bound beforehand: looking a label up costs as much as counting.
        self._requests = {status: requests.labels(str(status)) for status in _STATUSES}
        self._seconds = Histogram(
            "bloomery_request_seconds", "From the head of a request to its answer", buckets=_SECONDS
        )
        self._rows = Counter("bloomery_rows_total", "Rows that were answered")
        self._together = Histogram("bloomery_rows_together", "Rows that were one run of the network", buckets=_ROWS)
        explanations = Counter(
            "bloomery_explanations_total", "Requests for explanations, by the status that was answered", ["status"]
        )
        self._explanations = {status: explanations.labels(str(status)) for status in _STATUSES}
        self._explanation_seconds = Histogram(
            "bloomery_explanation_seconds", "From the head of a request to its explanations", buckets=_SECONDS
        )
        self._version = Gauge(
            "bloomery_version_info", "1 for the version that answers", ["version"], multiprocess_mode="max"
        )
        self._tag: str | None = None
        self._refused = Counter("bloomery_versions_refused_total", "Versions that were pointed to and could not answer")
        lost = Counter("bloomery_rows_lost_total", "Answered rows that were not kept or repeated, by whom", ["by"])
        self.lost_by_log, self.lost_by_shadow = lost.labels("log").inc, lost.labels("shadow").inc

    def asked(self, status: int, seconds: float) -> None:
        self._requests[status].inc()
        self._seconds.observe(seconds)

    def refused(self) -> None:
        self._refused.inc()

    def explained(self, status: int, seconds: float) -> None:
        self._explanations[status].inc()
        self._explanation_seconds.observe(seconds)

    def answered(self, answered: Answered) -> None:
        num_rows = len(answered.given)
        self._rows.inc(num_rows)
        self._together.observe(num_rows)

    def serves(self, tag: str) -> None:
        if self._tag is not None:
            self._version.labels(self._tag).set(0)
        self._version.labels(tag).set(1)
        self._tag = tag
