"""How far a stage is, as a bar in its Prefect task run while it runs."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections.abc import Iterator
from typing import Any

from bloomery.tasks.orchestration import events

_EVERY_S = 2.0


@contextlib.contextmanager
def shown_progress(stage: str) -> Iterator[None]:
    """Inside the `with` block, a task run's, the progress that `stage` tells of is an artifact of the run.

    A thread sends it, at most every two seconds: a server that is slow or gone slows no training.
    """
    teller = _Teller(stage)
    unwatch = events.watch(teller.hear)
    context = contextvars.copy_context()  # which knows the task run
    thread = threading.Thread(target=lambda: context.run(teller.tell), daemon=True)
    thread.start()
    try:
        yield
        teller.is_whole = True
    finally:
        unwatch()
        teller.ended.set()
        thread.join(timeout=10)


class _Teller:
    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.ended = threading.Event()
        self.is_whole = False
        self._latest: events.Progress | None = None
        self._artifact: Any = None

    def hear(self, event: events.Event) -> None:
        if isinstance(event, events.Progress) and event.name == self.stage:
            self._latest = event

    def tell(self) -> None:
        """Send what is new until the stage has ended, and then how it ended."""
        told: events.Progress | None = None
        try:
            while not self.ended.wait(_EVERY_S):
                if self._latest is not None and self._latest is not told:
                    told = self._latest
                    self._send(told)
            if self._latest is not None:
                self._send(self._latest)
        except Exception:
            logging.getLogger(__name__).warning("the progress of %s is not shown", self.stage, exc_info=True)

    def _send(self, progress: events.Progress) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        share = 100.0 if self.is_whole else min(100.0 * progress.done / max(progress.total, 1), 99.0)
        done = progress.total if self.is_whole else progress.done
        text = f"{self.stage}: {done} of {progress.total}, {progress.note}"
        if self._artifact is None:
            self._artifact = create_progress_artifact(share, key=f"{self.stage}-progress", description=text)
        else:
            update_progress_artifact(self._artifact, share, description=text)
