"""`bloomery key`: who may ask the endpoint, and the key that vouches for what is packaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bloomery.flows.cli.exit_codes import told

app = typer.Typer(
    help="Make, list and revoke the keys of the endpoint's clients; show the key that signs versions.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KeyName = Annotated[str, typer.Argument(help="Letters, digits, dots, dashes and underlines.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def create(
    name: KeyName,
    rate: Annotated[float | None, typer.Option(help="Requests a second that it is good for; else any number.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and show it, this once."""
    with told(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security import api_keys

        require_state_folder()
        shown, made = api_keys.create(name, rate)
        if as_json:
            typer.echo(json.dumps({"name": made.name, "rate": made.rate, "made": made.made, "key": shown}))
        else:
            typer.echo(shown)
            typer.echo(f"That is the key of {name}. It is not kept: put it where {name} finds it.", err=True)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys, with what they are good for."""
    with told(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security import api_keys

        require_state_folder()
        found = api_keys.listed()
        if as_json:
            document = [key.model_dump(include={"name", "rate", "made", "revoked"}) for key in found]
            typer.echo(json.dumps({"keys": document}))
            return
        from rich.console import Console
        from rich.table import Table

        table = Table("name", "made", "revoked", "requests a second")
        for key in found:
            rate = "any number" if key.rate is None else f"{key.rate:g}"
            table.add_row(key.name, key.made, key.revoked or "", rate, style="dim" if key.revoked else "")
        Console(highlight=False).print(table if found else "no keys; `bloomery key create NAME` makes one")


@app.command()
def revoke(name: KeyName, as_json: AsJson = False) -> None:
    """Revoke a key: within a second no endpoint of this state folder lets it in."""
    with told(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security import api_keys

        require_state_folder()
        gone = api_keys.revoke(name)
        document = {"name": gone.name, "revoked": gone.revoked}
        typer.echo(json.dumps(document) if as_json else f"{name} was revoked at {gone.revoked}")


@app.command()
def signing(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The PEM file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the public part of the key that signs versions; another machine that has it trusts them."""
    with told(as_json):
        from bloomery.data_contracts.serving.signatures import fingerprint, public_pem
        from bloomery.flows.cli.commands.contracts import write
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security.signing_key import signing_key

        require_state_folder()
        key = signing_key().public_key()
        text = public_pem(key).decode()
        if output is not None:
            write(output, text)
        if as_json:
            typer.echo(json.dumps({"key": fingerprint(key), "public": text, "output": output and str(output)}))
        else:
            typer.echo(text.rstrip() if output is None else f"{fingerprint(key)}: {output}")
