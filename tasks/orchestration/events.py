"""Events of a run, for subscribers in the same process, such as the display of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class StageStarted(NamedTuple):
    name: str


class StageEnded(NamedTuple):
    """`outcome` is "ready", "computed", "found", "decided" or "failed"."""

    name: str
    outcome: str
    seconds: float
    note: str = ""


class Progress(NamedTuple):
    """The running stage has done `done` of `total` steps; `note` has its latest metrics."""

    name: str
    done: int
    total: int
    note: str


class Waiting(NamedTuple):
    """The run waits, for a person's decision or for a server, which `text` describes."""

    name: str
    text: str


Event = StageStarted | StageEnded | Progress | Waiting

_subscribers: list[Callable[[Event], None]] = []


def subscribe(subscriber: Callable[[Event], None]) -> Callable[[], None]:
    """Calls `subscriber` with every event of this process. Returns a function that ends the subscription."""
    _subscribers.append(subscriber)
    return lambda: _subscribers.remove(subscriber)


def emit(event: Event) -> None:
    for subscriber in tuple(_subscribers):
        subscriber(event)


def format_duration(seconds: float) -> str:
    """Returns a duration for the note of `Progress`, such as `2 min 5 s`."""
    minutes, remainder = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {remainder} s" if minutes else f"{remainder} s"
