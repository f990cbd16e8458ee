"""What happens during a run, told to whoever watches: the command line's display, or nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class StageStarted(NamedTuple):
    name: str


class StageEnded(NamedTuple):
    """`outcome` is "ready", "computed", "found", "asked" or "failed"."""

    name: str
    outcome: str
    seconds: float
    note: str = ""


class Progress(NamedTuple):
    """`done` of `total` steps of the stage that is running, with its latest figures in `note`."""

    name: str
    done: int
    total: int
    note: str


class Waiting(NamedTuple):
    """The stage that is running waits for a person, who may read `text`."""

    name: str
    text: str


Event = StageStarted | StageEnded | Progress | Waiting

_watchers: list[Callable[[Event], None]] = []


def watch(watcher: Callable[[Event], None]) -> Callable[[], None]:
    """Call `watcher` with every event of this process until the function that is returned is called."""
    _watchers.append(watcher)
    return lambda: _watchers.remove(watcher)


def emit(event: Event) -> None:
    for watcher in tuple(_watchers):
        watcher(event)
