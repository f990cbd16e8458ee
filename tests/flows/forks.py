"""Runs of `bloomery` that are forked from a process which has imported the engines: that takes longer than most stages.

Reads lines of JSON: a list of arguments starts a run, and its process id is answered; a number waits for the process of
that id, and its exit code is answered. PREFECT_API_URL must be set, for prefect learns it when it is imported.
"""

import json
import os
import sys

import great_expectations  # noqa: F401
import mlflow  # noqa: F401
import torch  # noqa: F401

import flows.pipeline  # noqa: F401
from flows.cli import main


def _run(arguments: list[str]) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.argv = ["bloomery", *arguments]
    main()


for line in sys.stdin:
    told = json.loads(line)
    if isinstance(told, int):
        print(os.waitstatus_to_exitcode(os.waitpid(told, 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        _run(told)
    print(child, flush=True)
