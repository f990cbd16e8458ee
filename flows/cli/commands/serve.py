"""`bloomery serve`: a registered version's bento, which follows the champion."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Annotated

import typer

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.flows.cli.exit_codes import at_work

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_CANARY = re.compile(r"(?P<reference>[^=]+)=(?P<percent>\d+(\.\d+)?)%")


def serve(
    name: Annotated[str, typer.Argument(help="NAME serves the champion, whichever it is; NAME:3 that version alone.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    shadow: Annotated[str, typer.Option(metavar="NAME:VERSION", help="Log its answers to every request, too.")] = "",
    canary: Annotated[str, typer.Option(metavar="NAME:VERSION=5%", help="Let it answer that share.")] = "",
    log: Annotated[bool, typer.Option(help="Keep what is asked and answered as Parquet.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Serve a registered version's bento, in the foreground, until Ctrl-C."""
    with at_work(as_json, "serve") as out:
        from bloomery.tasks.bentos.bento_server import require_bento, require_keys, serve_command, serve_environment
        from bloomery.tasks.bentos.bento_store import bento_folder
        from bloomery.tasks.infrastructure.tethered_process import require_free
        from bloomery.tasks.registry.model_registry import BENTO, require_not_freed, version_of

        require_free(host, port)
        require_keys(host)
        version = version_of(name)
        tag = version.tags[BENTO]
        require_not_freed(version, bento_folder(tag).is_dir())
        require_bento(tag)
        environment = _environment(version, follows=":" not in name, shadow=shadow, canary=canary, log=log)
        if as_json:
            document = {"name": version.name, "version": int(version.version), "bento": tag, "host": host, "port": port}
            out.file.write(json.dumps(document) + "\n")
        else:
            out.print(f"{version.name} version {version.version} (bento {tag}) on http://{host}:{port}")
        out.file.flush()
    if as_json:
        os.dup2(2, 1)  # stdout has had its one document
    command = serve_command(tag, host, port)
    os.execve(command[0], command, {**os.environ, **serve_environment(), **environment})


def _environment(version: ModelVersion, *, follows: bool, shadow: str, canary: str, log: bool) -> dict[str, str]:
    """What the endpoint is told beside its bento."""
    from bloomery.tasks.infrastructure.settings import settings
    from bloomery.tasks.registry import champion

    wishes: dict[str, str] = {}
    if follows:
        wishes["POINTER"] = str(champion.point_to_champion(version.name))
    if log or shadow:
        wishes["LOG"] = str(settings().home / "predictions" / version.name)
    if shadow:
        wishes["SHADOW"] = _artifacts_of(shadow)
    if canary:
        stated = _CANARY.fullmatch(canary)
        if stated is None or not 0 < float(stated["percent"]) <= 100:
            raise SettingInvalid(
                f"--canary is {canary!r}",
                required="a version and its share of the requests, above 0% and up to 100%",
                where="the command line",
                remedy=f"say --canary {version.name}:VERSION=5%",
            )
        wishes |= {"CANARY": _artifacts_of(stated["reference"]), "CANARY_SHARE": f"{float(stated['percent']) / 100:g}"}
    return {f"BLOOMERY_SERVE_{name}": value for name, value in wishes.items()}


def _artifacts_of(reference: str) -> str:
    from bloomery.tasks.bentos.bento_server import require_bento
    from bloomery.tasks.bentos.bento_store import artifacts_folder
    from bloomery.tasks.registry.model_registry import BENTO, version_of

    tag = version_of(reference).tags[BENTO]
    require_bento(tag)
    return str(artifacts_folder(tag))
