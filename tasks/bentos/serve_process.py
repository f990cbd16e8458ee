"""BentoML's command line, with a server that says how it was stopped and that SIGHUP stops.

`python -P serve_process.py REMEDY serve FOLDER …` prints REMEDY after a signal. By itself, BentoML's server would load
its code again at SIGHUP, and so would outlive its terminal. This program is started by its path and imports nothing of
Bloomery, since the bento contains its own copy.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from types import FrameType

from bentoml_cli.cli import cli
from circus.sighandler import SysHandler


def main() -> None:
    remedy = sys.argv.pop(1)
    received: list[str] = []
    forward = SysHandler.signal

    def handle(handler: SysHandler, number: int, frame: FrameType | None = None) -> None:
        received.append(signal.Signals(number).name)
        forward(handler, signal.SIGTERM if number == signal.SIGHUP else number, frame)

    SysHandler.signal = handle
    try:
        cli()
    finally:
        if received and remedy:
            message = f"\nstopped by {received[0]}: the endpoint has ended\n  do:       {remedy}"
            with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
                print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
