"""`bloomery key`: API keys of the endpoint, and the key that signs versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bloomery.flows.cli.exit_codes import reporting_errors

app = typer.Typer(
    help="Manage API keys of the endpoint; show the signing key.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KeyName = Annotated[str, typer.Argument(help="Letters, digits, dots, dashes and underscores.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def create(
    name: KeyName,
    rate: Annotated[float | None, typer.Option(help="Allowed requests per second; unlimited by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key and show it once."""
    with reporting_errors(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security import api_keys

        require_state_folder()
        secret, key = api_keys.create_key(name, rate)
        if as_json:
            typer.echo(json.dumps({"name": key.name, "rate": key.rate, "created_at": key.created_at, "key": secret}))
        else:
            typer.echo(secret)
            typer.echo(f"This is the key of {name}. It is not stored: pass it to {name} now.", err=True)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys and their rates."""
    with reporting_errors(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security import api_keys

        require_state_folder()
        stored = api_keys.list_keys()
        if as_json:
            document = [key.model_dump(include={"name", "rate", "created_at", "revoked_at"}) for key in stored]
            typer.echo(json.dumps({"keys": document}))
            return
        from rich.console import Console
        from rich.markup import escape
        from rich.table import Table

        table = Table("name", "created", "revoked", "requests per second")
        for key in stored:
            rate = "unlimited" if key.rate is None else f"{key.rate:g}"
            table.add_row(
                escape(key.name), key.created_at, key.revoked_at or "", rate, style="dim" if key.revoked_at else ""
            )
        Console(highlight=False, emoji=False).print(
            table if stored else "no keys; `bloomery key create NAME` creates one"
        )


@app.command()
def revoke(name: KeyName, as_json: AsJson = False) -> None:
    """Revoke a key; endpoints reject it within a second."""
    with reporting_errors(as_json):
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security import api_keys

        require_state_folder()
        key = api_keys.revoke_key(name)
        document = {"name": key.name, "revoked_at": key.revoked_at}
        typer.echo(json.dumps(document) if as_json else f"{name} was revoked at {key.revoked_at}")


@app.command()
def signing(
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The PEM file to write.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the public key that verifies signed versions."""
    with reporting_errors(as_json):
        from bloomery.data_contracts.serving.signatures import encode_public_key, key_fingerprint
        from bloomery.flows.cli.commands.contracts import write_output
        from bloomery.tasks.infrastructure.settings import require_state_folder
        from bloomery.tasks.security.signing_key import load_signing_key

        require_state_folder()
        key = load_signing_key().public_key()
        text = encode_public_key(key).decode()
        if output is not None:
            write_output(output, text)
        if as_json:
            typer.echo(json.dumps({"key": key_fingerprint(key), "public": text, "output": output and str(output)}))
        else:
            typer.echo(text.rstrip() if output is None else f"{key_fingerprint(key)}: {output}")
