"""A token bucket, which limits requests per second."""

from __future__ import annotations

import time


class TokenBucket:
    """A bucket with a capacity of one second's requests, and at least one."""

    def __init__(self, per_second: float | None) -> None:
        """`per_second` None means no limit."""
        self.per_second = per_second
        self._capacity = 0.0 if per_second is None else max(1.0, per_second)
        self._tokens, self._updated_at = self._capacity, time.monotonic()

    def take(self, now: float) -> float:
        """Takes a token for a request at `now`. Returns 0, or the seconds until the next token if there is none."""
        if self.per_second is None:
            return 0.0
        tokens = min(self._capacity, self._tokens + (now - self._updated_at) * self.per_second)
        self._updated_at = now
        self._tokens = tokens if tokens < 1 else tokens - 1
        return 0.0 if tokens >= 1 else (1 - tokens) / self.per_second
