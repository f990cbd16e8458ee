"""SIGINT, SIGTERM and SIGHUP end a command as Ctrl-C does: what it has started ends, and it says how to continue."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SAME_STOP_S = 1.0  # signals that follow sooner are the same stop: `timeout` and terminals send two
_CONTINUING = ("run", "backfill")  # commands that find what an earlier call has completed


class Stopped(KeyboardInterrupt):
    """The process received a signal that ends it. As KeyboardInterrupt it passes `except Exception`."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


def raise_on_signals() -> None:
    """Makes this process raise `Stopped` at the first signal, and end at once at a later one.

    Tethered servers end also in the second case. A signal that the caller has ignored, as `nohup` does, stays ignored.
    """
    stop_times: list[float] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stop_times.append(time.monotonic())
        if len(stop_times) == 1:
            raise Stopped(number)
        if stop_times[-1] - stop_times[0] > _SAME_STOP_S:
            os._exit(exit_code(number))

    for number in _SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def exit_code(number: int) -> int:
    """Returns the exit code that a shell reports for a process which this signal has ended."""
    return 128 + number


def stop_document(stop: KeyboardInterrupt) -> dict[str, Any]:
    """Returns the report of a stopped command."""
    number = stop.number if isinstance(stop, Stopped) else int(signal.SIGINT)
    arguments = sys.argv[1:]
    command = shlex.join(["bloomery", *arguments])
    continues = bool(arguments) and arguments[0] in _CONTINUING
    name = signal.Signals(number).name
    kept = "; the outputs of complete stages are kept" if continues else ""
    effect = "; it continues after the last complete stage, a training after its last checkpoint" if continues else ""
    return {
        "error": "KeyboardInterrupt" if number == signal.SIGINT else "Stopped",
        "found": f"stopped by {name}: all processes of this command have ended{kept}",
        "remedy": f"run `{command}` again{effect}",
        "exit_code": exit_code(number),
    }
