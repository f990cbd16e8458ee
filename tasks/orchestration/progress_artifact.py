"""Shows the progress of a running stage as a Prefect artifact of its task run."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Iterator
from typing import Any

from bloomery.tasks.orchestration import events

_INTERVAL_S = 2.0


@contextlib.contextmanager
def report_progress(stage: str) -> Iterator[None]:
    """Sends the progress of `stage` to Prefect inside the `with` block of a task run.

    A thread sends it, at most every two seconds, so a slow or missing server does not delay training.
    """
    reporter = _ProgressReporter(stage)
    unsubscribe = events.subscribe(reporter.receive)
    context = contextvars.copy_context()  # contains the current task run
    thread = threading.Thread(target=lambda: context.run(reporter.run), daemon=True)
    thread.start()
    try:
        yield
        reporter.has_succeeded = True
    finally:
        unsubscribe()
        reporter.ended.set()
        thread.join(timeout=10)


class _ProgressReporter:
    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.ended = threading.Event()
        self.has_succeeded = False
        self._latest: events.Progress | None = None
        self._artifact: Any = None

    def receive(self, event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.name == self.stage:
            self._latest = event

    def run(self) -> None:
        """Sends each new progress until the stage has ended, then its final state."""
        last_sent: events.Progress | None = None
        try:
            while not self.ended.wait(_INTERVAL_S):
                if self._latest is not None and self._latest is not last_sent:
                    last_sent = self._latest
                    self._send(last_sent)
            if self._latest is not None:
                self._send(self._latest)
        except Exception:
            logging.getLogger(__name__).warning("the progress of %s cannot be shown", self.stage, exc_info=True)

    def _send(self, progress: events.Progress) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        percent = 100.0 if self.has_succeeded else min(100.0 * progress.done / max(progress.total, 1), 99.0)
        num_done = progress.total if self.has_succeeded else progress.done
        text = f"{self.stage}: {num_done} of {progress.total}, {progress.note}"
        if self._artifact is None:
            self._artifact = create_progress_artifact(percent, key=f"{self.stage}-progress", description=text)
        else:
            update_progress_artifact(self._artifact, percent, description=text)
