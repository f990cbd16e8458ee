"""`bloomery container`: from a registered version to a folder that a container is built from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bloomery.flows.cli.exit_codes import at_work


def container(
    name: Annotated[str, typer.Argument(help="NAME for the champion; NAME:3 for another version.")],
    to: Annotated[Path, typer.Option(help="The folder to write; not there yet, or empty.")],
    base_image: Annotated[
        str | None, typer.Option(help="Instead of the Python that packaged it, such as one with its sha256.")
    ] = None,
    most_mb: Annotated[int, typer.Option(min=1, help="How large the folder may be.")] = 1000,
    force: Annotated[bool, typer.Option("--force", help="Replace a build context that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Write what a container of a version is built from, and check it. No Docker engine is needed."""
    with at_work(as_json, "container") as out:
        from bloomery.tasks.bentos.bento_server import require_bento
        from bloomery.tasks.bentos.container_context import write_context
        from bloomery.tasks.registry.model_registry import BENTO, version_of

        tag = version_of(name).tags[BENTO]
        require_bento(tag)
        made = write_context(tag, to, base_image=base_image, most_bytes=most_mb * 1_000_000, force=force)
        if as_json:
            out.file.write(json.dumps({**made._asdict(), "folder": str(made.folder.absolute())}) + "\n")
            return
        out.print(f"bento {made.tag} in {made.folder}: {made.num_files} files, {made.size_bytes / 1e6:.1f} MB")
        out.print(f"from {made.base_image}, {made.num_packages} packages, all pinned; every check passed\n")
        out.print(f"next:\n  docker build -t {made.tag} {made.folder}\n  and as docs/deploy.md says, with its keys")
