"""Counts request outcomes, including rejected requests, which the prediction log does not contain.

It counts in memory; a thread appends a line per version to a file every few seconds.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bloomery.data_contracts.serving.prediction_log import OUTCOMES_SUFFIX, RequestOutcome

_MAX_RULES = 100  # per line; clients choose the names of unknown columns
_MAX_RULE_LETTERS = 200
_OTHER_RULES = "others"
_RETENTION_SECONDS = 90 * 86_400
_log = logging.getLogger("bloomery.endpoint")


class OutcomeLog:
    """A listener to request outcomes."""

    def __init__(self, folder: Path, write_interval_s: float = 5.0) -> None:
        self._folder, self._write_interval_s = folder, write_interval_s
        self._statuses: dict[str, Counter[int]] = defaultdict(Counter)
        self._violations: dict[str, Counter[str]] = {}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outcome-log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def __call__(self, version: str, status: int, problems: Sequence[Mapping[str, Any]]) -> None:
        """Counts one request to `version`."""
        with self._lock:
            self._statuses[version][int(status)] += 1
            for problem in problems:
                counts = self._violations.setdefault(version, Counter())
                rule = f"{problem.get('column')}: {problem.get('rule')}"[:_MAX_RULE_LETTERS]
                counts[rule if rule in counts or len(counts) < _MAX_RULES else _OTHER_RULES] += 1

    def close(self) -> None:
        """Writes all counts to the file, then ends."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        self._remove_expired()
        while not self._closing.wait(self._write_interval_s):
            self._write()
        self._write()

    def _write(self) -> None:
        with self._lock:
            all_statuses, self._statuses = self._statuses, defaultdict(Counter)
            violations, self._violations = self._violations, {}
        if not all_statuses:
            return
        now = datetime.now(UTC)
        outcomes = [
            RequestOutcome(
                at=now, version=version, statuses=dict(statuses), violations=dict(violations.get(version, {}))
            )
            for version, statuses in all_statuses.items()
        ]
        try:
            day = self._folder / f"day={now:%Y-%m-%d}"
            day.mkdir(parents=True, exist_ok=True)
            # A single write: only the last line can be incomplete after a kill.
            with (day / f"{os.getpid()}{OUTCOMES_SUFFIX}").open("a", encoding="utf-8") as file:
                file.write("".join(outcome.model_dump_json() + "\n" for outcome in outcomes))
        except OSError:
            _log.exception("request outcomes could not be written; serving continues")

    def _remove_expired(self) -> None:
        for path in self._folder.glob(f"day=*/*{OUTCOMES_SUFFIX}"):
            try:
                if time.time() - path.stat().st_mtime > _RETENTION_SECONDS:
                    path.unlink()
            except OSError:
                continue  # another process of the endpoint has removed it
