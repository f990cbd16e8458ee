"""Runs uvicorn on an inherited socket: `python -P -m bloomery.tasks.infrastructure.uvicorn_process FD MODULE:FACTORY`.

uvicorn's own option `--fd` takes every socket for a Unix socket, and delays small responses of others.
"""

from __future__ import annotations

import socket
import sys

import uvicorn


def main() -> None:
    listener = socket.socket(fileno=int(sys.argv[1]))
    uvicorn.Server(uvicorn.Config(sys.argv[2], factory=True, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main()
