"""`bloomery serve` and `container`: serve a registered version, or write the build context of its container."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bloomery.data_contracts.errors import SettingInvalid
from bloomery.flows.cli.exit_codes import command_session

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion

_CANARY = re.compile(r"(?P<reference>[^=]+)=(?P<percent>\d+(\.\d+)?)%")

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


def serve(
    name: Annotated[str, typer.Argument(help="NAME follows the champion; NAME:3 serves that version only.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 3000,
    shadow: Annotated[str, typer.Option(metavar="NAME:VERSION", help="Also log this version's predictions.")] = "",
    canary: Annotated[
        str, typer.Option(metavar="NAME:VERSION=5%", help="Send this share of requests to the version.")
    ] = "",
    log: Annotated[bool, typer.Option(help="Log requests and predictions as Parquet.")] = True,
    as_json: AsJson = False,
) -> None:
    """Serve a registered version in the foreground until Ctrl-C."""
    if not as_json:
        typer.echo(f"serving {name}: reading the registry and checking the bento …")
        sys.stdout.flush()
    with command_session(as_json, "serve") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model
        from bloomery.tasks.bentos.bento_server import require_bento, require_keys, serve_command, serve_environment
        from bloomery.tasks.bentos.bento_store import bento_folder
        from bloomery.tasks.infrastructure.tethered_process import require_free_port
        from bloomery.tasks.registry.model_registry import find_version, require_bento_tag, require_not_freed

        require_free_port(host, port)
        require_keys(host)
        reference = resolve_model(name)
        version = find_version(reference)
        tag = require_bento_tag(version)
        require_not_freed(version, has_bento=bento_folder(tag).is_dir())
        require_bento(tag)
        environment = _environment(version, follows=follows_champion(reference), shadow=shadow, canary=canary, log=log)
        if as_json:
            document = {"name": version.name, "version": int(version.version), "bento": tag, "host": host, "port": port}
            out.file.write(json.dumps(document) + "\n")
        else:
            for line in describe_start(version, host, port):
                out.print(line, highlight=False, markup=False, soft_wrap=True)
        out.file.flush()
    if as_json:
        os.dup2(2, 1)  # standard output already has its one document
    command = serve_command(tag, host, port, f"run `{shlex.join(['bloomery', *sys.argv[1:]])}` again")
    os.execve(command[0], command, {**os.environ, **serve_environment(), **environment})


def container(
    name: Annotated[str, typer.Argument(help="NAME for the champion; NAME:3 for another version.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; new or empty.")],
    base_image: Annotated[
        str | None, typer.Option(help="Base image; defaults to the Python that packaged the version.")
    ] = None,
    max_size_mb: Annotated[int, typer.Option(min=1, help="The maximum size of the folder.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing build context.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write and check the container build context of a version, without Docker."""
    with command_session(as_json, "container") as out:
        from bloomery.flows.recipe.recipe_files import resolve_model
        from bloomery.tasks.bentos.bento_server import require_bento
        from bloomery.tasks.bentos.container_context import write_build_context
        from bloomery.tasks.registry.model_registry import find_version, require_bento_tag

        tag = require_bento_tag(find_version(resolve_model(name)))
        require_bento(tag)
        max_bytes = max_size_mb * 1_000_000
        context = write_build_context(tag, output, base_image=base_image, max_bytes=max_bytes, force=force)
        if as_json:
            out.file.write(json.dumps({**context._asdict(), "folder": str(context.folder.absolute())}) + "\n")
            return
        folder = shlex.quote(str(context.folder))
        size = f"{context.num_files} files, {context.size_bytes / 1e6:.1f} MB"
        out.print(f"bento {context.tag} in {context.folder}: {size}", markup=False)
        num_packages = f"{context.num_packages} pinned packages"
        out.print(f"from {context.base_image}, {num_packages}; all checks passed\n", markup=False)
        out.print("next:")
        out.print(f"  docker build -t {context.tag} {folder}", highlight=False, markup=False, soft_wrap=True)
        out.print("  then run it with keys, see docs/deploy.md")


def follows_champion(reference: str) -> bool:
    """Whether an endpoint of `NAME`, `NAME:3` or `NAME@ALIAS` switches to each new champion."""
    name, separator, alias = reference.partition("@")
    return alias == "champion" if separator else ":" not in name


def describe_start(version: ModelVersion, host: str, port: int) -> Iterator[str]:
    """Yields what starts where, and how it is stopped."""
    address = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    yield f"{version.name} version {version.version} (bento {version.tags['bento']}) starts on http://{host}:{port}"
    yield f"  to try it   http://{address}:{port}/docs"
    yield "  to stop it  press Ctrl-C"


def _environment(version: ModelVersion, *, follows: bool, shadow: str, canary: str, log: bool) -> dict[str, str]:
    """Returns the environment variables that configure the endpoint."""
    from bloomery.tasks.infrastructure.settings import settings
    from bloomery.tasks.registry import champion

    options: dict[str, str] = {}
    if follows:
        options["POINTER"] = str(champion.write_champion_pointer(version.name))
    if log or shadow:
        options["LOG"] = str(settings().home / "predictions" / version.name)
    if shadow:
        options["SHADOW"] = _artifacts_of(shadow)
    if canary:
        match = _CANARY.fullmatch(canary)
        if match is None or not 0 < float(match["percent"]) <= 100:
            raise SettingInvalid(
                f"--canary is {canary!r}",
                required="a version and its share of the requests, above 0% and up to 100%",
                where="the command line",
                remedy=f"use --canary {version.name}:VERSION=5%",
            )
        options |= {"CANARY": _artifacts_of(match["reference"]), "CANARY_SHARE": f"{float(match['percent']) / 100:g}"}
    return {f"BLOOMERY_SERVE_{name}": value for name, value in options.items()}


def _artifacts_of(reference: str) -> str:
    from bloomery.flows.recipe.recipe_files import resolve_model
    from bloomery.tasks.bentos.bento_server import require_bento
    from bloomery.tasks.bentos.bento_store import artifacts_folder
    from bloomery.tasks.registry.model_registry import find_version, require_bento_tag

    tag = require_bento_tag(find_version(resolve_model(reference)))
    require_bento(tag)
    return str(artifacts_folder(tag))
