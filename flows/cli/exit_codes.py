"""How a command ends: with what went wrong told in the form that was asked for, and the error's own exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import BloomeryError, EngineMissing


@contextlib.contextmanager
def told(as_json: bool, out: Any = None, err: Any = None, log: Path | None = None) -> Iterator[None]:
    """End the process with the error's own exit code, after it was told to the user in the form that was asked for."""
    try:
        yield
    except EngineMissing as error:
        from bloomery.tasks.infrastructure.settings import no_room

        told_of: BloomeryError = no_room(error, "an engine") or error  # a server that finds no room does not say so
        _tell(told_of.as_document(), str(told_of), as_json, out, err)
        raise SystemExit(told_of.exit_code) from None
    except BloomeryError as error:
        _tell(error.as_document(), str(error), as_json, out, err)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        _tell({"error": "KeyboardInterrupt", "exit_code": 130}, "stopped; finished stages are kept", as_json, out, err)
        raise SystemExit(130) from None
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()  # into the log, where there is one
        from bloomery.tasks.infrastructure.settings import no_room, share_lost

        ending = share_lost(error) or no_room(error, "the run")
        if ending is not None:
            _tell(ending.as_document(), str(ending), as_json, out, err)
            raise SystemExit(ending.exit_code) from None
        text = f"{type(error).__name__}: {error}"
        document = {"error": type(error).__name__, "found": str(error), "exit_code": 1}
        _tell(document, text, as_json, out, err, log)
        raise SystemExit(1) from None


@contextlib.contextmanager
def at_work(as_json: bool, what: str, *, with_room: bool = True) -> Iterator[Any]:
    """The state folder is there, engines write into a log named for `what`, errors are told as asked.

    `with_room=False` is for what works on a full disk, too.

    Yields standard output's console.
    """

    from bloomery.tasks.infrastructure.settings import require_state_folder

    with told(as_json):
        log = require_state_folder(with_room=with_room).logs / f"{what}-{os.getpid()}.log"
    from bloomery.flows.cli.display import engines_to_log

    with engines_to_log(log) as (out, err), told(as_json, out, err, log):
        yield out


def _tell(document: dict[str, Any], text: str, as_json: bool, out: Any, err: Any, log: Path | None = None) -> None:
    if as_json:
        print(json.dumps(document), file=out.file if out else sys.stdout, flush=True)
        return
    where = f"\n  log:      {log}" if log else ""
    name = "" if document["error"] == "KeyboardInterrupt" else f"{document['error']}: "
    stream = err.file if err else sys.stderr
    print(f"\n✗ {name}{text}{where}", file=stream, flush=True)
