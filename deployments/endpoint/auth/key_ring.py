"""The API keys of a file, with the rate limit and the request counters of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from bloomery.data_contracts.errors import BloomeryError
from bloomery.data_contracts.serving.api_keys import ApiKey, read_keys
from bloomery.deployments.endpoint.auth.rate_limit import TokenBucket

_POLL_INTERVAL_S = 0.5
_log = logging.getLogger("bloomery.endpoint")


class KeyMetrics:
    """Counts requests by key for `/metrics`. Labels are names of the key file, so their number is bounded."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "bloomery_key_requests_total",
            "Requests by API key and outcome: admitted, rate_limited or revoked",
            ["key", "outcome"],
            registry=registry,
        )

    def counter(self, key_name: str, outcome: str) -> Callable[[], None]:
        """Returns a function that counts one request."""
        increment: Callable[[], None] = self._requests.labels(key_name, outcome).inc
        return increment


class Client:
    """The holder of one key: its rate limit and its counters."""

    def __init__(self, key: ApiKey, metrics: KeyMetrics) -> None:
        self.key = key
        self.is_revoked = key.revoked_at is not None
        self.count_admitted = metrics.counter(key.name, "admitted")
        self.count_rate_limited = metrics.counter(key.name, "rate_limited")
        self.count_revoked = metrics.counter(key.name, "revoked")
        self.bucket = TokenBucket(key.rate)


class KeyRing:
    """The keys of a file, which is read again when it changes."""

    def __init__(self, path: Path | None, metrics: KeyMetrics) -> None:
        """Reads the file. Raises DocumentInvalid if it exists and cannot be read."""
        self.path = path
        self._metrics = metrics
        self._clients: dict[bytes, Client] = {}  # by the digest of the key
        self._file_state: object = None
        self._polled_at = time.monotonic()
        self.is_readable = True
        self._read(self._stat())

    def __len__(self) -> int:
        """The number of keys that are not revoked."""
        return sum(not client.is_revoked for client in self._clients.values())

    def find_client(self, key: bytes, now: float) -> Client | None:
        if now - self._polled_at > _POLL_INTERVAL_S:
            self._polled_at = now
            self._poll()
        return self._clients.get(sha256(key).digest())

    def _stat(self) -> object:
        if self.path is None:
            return None
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _poll(self) -> None:
        file_state = self._stat()
        if file_state == self._file_state and self.is_readable:
            return
        try:
            self._read(file_state)
            self.is_readable = True
        except BloomeryError as failure:
            if self.is_readable:
                _log.error("the key file has changed and cannot be read; all requests are rejected\n%s", failure)
            # A key may have been revoked in the new file, so no earlier key is valid.
            self._clients, self.is_readable = {}, False

    def _read(self, file_state: object) -> None:
        keys = () if self.path is None else read_keys(self.path).keys
        previous = self._clients
        self._clients = {}
        for key in keys:
            digest = bytes.fromhex(key.sha256)
            client = previous.get(digest)  # an unchanged key keeps the state of its bucket
            self._clients[digest] = client if client and client.key == key else Client(key, self._metrics)
        self._file_state = file_state
