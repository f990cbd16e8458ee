"""Exit codes and error reports of commands, as text or as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.errors import BloomeryError, EngineMissing
from bloomery.flows.cli.stop_signals import stop_document

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def reporting_errors(
    as_json: bool, out: Console | None = None, err: Console | None = None, log: Path | None = None
) -> Iterator[None]:
    """Reports an error of the `with` block in the requested form, and ends the process with its exit code."""
    try:
        yield
    except EngineMissing as error:
        from bloomery.tasks.infrastructure.disk_errors import disk_full_error
        from bloomery.tasks.infrastructure.settings import settings

        # A server does not report a full disk itself.
        cause: BloomeryError = disk_full_error(error, "an engine", settings().home) or error
        _report(cause.as_document(), str(cause), as_json, out, err)
        raise SystemExit(cause.exit_code) from None
    except BloomeryError as error:
        _report(error.as_document(), str(error), as_json, out, err)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt as stop:
        document = stop_document(stop)
        with contextlib.suppress(OSError):  # after SIGHUP the terminal may be gone
            _report(document, f"{document['found']}\n  do:       {document['remedy']}", as_json, out, err)
        raise SystemExit(document["exit_code"]) from None
    except Exception as error:
        with contextlib.suppress(OSError):
            traceback.print_exc()  # into the log, if there is one
        from bloomery.tasks.infrastructure.disk_errors import deleted_folder_error, disk_full_error, share_lost_error
        from bloomery.tasks.infrastructure.server_errors import unreachable_server_error
        from bloomery.tasks.infrastructure.settings import settings

        home = settings().home
        known_error = (
            deleted_folder_error()
            or share_lost_error(error, home)
            or disk_full_error(error, "the run", home)
            or unreachable_server_error(error, settings())
        )
        if known_error is not None:
            _report(known_error.as_document(), str(known_error), as_json, out, err)
            raise SystemExit(known_error.exit_code) from None
        text = f"{type(error).__name__}: {error}"
        document = {"error": type(error).__name__, "found": str(error), "exit_code": 1}
        _report(document, text, as_json, out, err, log)
        raise SystemExit(1) from None


@contextlib.contextmanager
def command_session(as_json: bool, name: str, *, with_room: bool = True) -> Iterator[Any]:
    """Prepares the state folder, sends engine output to a log named after the command, and reports errors.

    `with_room=False` is for commands that must also work on a full disk.

    Yields the console of standard output.
    """
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with reporting_errors(as_json):
        log = require_state_folder(with_room=with_room).logs / f"{name}-{os.getpid()}.log"
    from bloomery.flows.cli.display import engine_output_to_log

    with engine_output_to_log(log) as (out, err), reporting_errors(as_json, out, err, log):
        yield out


def _report(
    document: dict[str, Any],
    text: str,
    as_json: bool,
    out: Console | None,
    err: Console | None,
    log: Path | None = None,
) -> None:
    if as_json:
        print(json.dumps(document), file=out.file if out else sys.stdout, flush=True)
        return
    where = f"\n  log:      {log}" if log else ""
    name = "" if document["error"] in ("KeyboardInterrupt", "Stopped") else f"{document['error']}: "
    stream = err.file if err else sys.stderr
    print(f"\n✗ {name}{text}{where}", file=stream, flush=True)
