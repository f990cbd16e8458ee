"""`bloomery contract`: what contracts say, and how two versions differ."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.flows.cli.exit_codes import told

if TYPE_CHECKING:
    from bloomery.data_contracts.odcs.compatibility import Change
    from bloomery.data_contracts.odcs.contract import Contract

CONTRACTS = Path(__file__).resolve().parents[3] / "data_contracts" / "contracts"
SUFFIX = ".odcs.yaml"

app = typer.Typer(
    help="Show a contract, write its page or its reference, or compare two versions.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ContractName = Annotated[
    str, typer.Argument(help="A name in data_contracts/contracts/, or the path of a contract file.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def show(contract: ContractName, as_json: AsJson = False) -> None:
    """Show a contract's columns and rules."""
    with told(as_json):
        found = find_contract(contract)
        if as_json:
            typer.echo(json.dumps(as_document(found)))
        else:
            _print_contract(found)


@app.command()
def page(
    contract: ContractName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")],
    as_json: AsJson = False,
) -> None:
    """Write a contract as one HTML page."""
    with told(as_json):
        from bloomery.data_contracts.odcs.html_page import page as page_of

        found = find_contract(contract)
        write(output, page_of(found))
        typer.echo(json.dumps({"page": str(output)}) if as_json else f"{found.name} {found.version}: {output}")


@app.command()
def reference(
    recipe: Annotated[str, typer.Argument(help="The recipe whose checked rows later rows are compared with.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file NAME.reference.json beside the contract.")],
    columns: Annotated[str, typer.Option(help="Columns between commas; else all that have a distribution.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write the distributions of a recipe's checked rows, as a reference that a contract's rules can name."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with told(as_json):
        log = require_state_folder().logs / f"reference-{os.getpid()}.log"
    from bloomery.flows.cli.display import engines_to_log

    with engines_to_log(log) as (out, err), told(as_json, out, err, log):
        from bloomery.flows.recipe.recipe import read_recipe
        from bloomery.tasks.infrastructure.settings import settings
        from bloomery.tasks.ingest.stage import ingest, locate
        from bloomery.tasks.validate.reference_distribution import reference as reference_of
        from bloomery.tasks.validate.stage import validate

        wanted = read_recipe(recipe)
        source = locate(wanted.data, wanted.contract.personal_columns)
        checked = validate(ingest(source), wanted.contract)
        asked = [name.strip() for name in columns.split(",") if name.strip()]
        found = reference_of(settings().path(checked.uri), wanted.contract, asked)
        write(output, found.model_dump_json(by_alias=True, exclude_defaults=True, indent=1) + "\n")
        document = {"reference": str(output), "columns": list(found.columns)}
        out.file.write(json.dumps(document) + "\n" if as_json else f"{', '.join(found.columns)}: {output}\n")


@app.command()
def diff(
    old: ContractName,
    new: ContractName,
    as_json: AsJson = False,
) -> None:
    """Tell breaking from compatible changes. Exit code 3 where the new version number is too low for them."""
    with told(as_json):
        from bloomery.data_contracts.errors import VersionTooLow
        from bloomery.data_contracts.odcs.compatibility import compare, is_at_least, version_needed

        before, after = find_contract(old), find_contract(new)
        changes = compare(before, after)
        needed = version_needed(before, changes)
        is_enough = is_at_least(after.version, needed)
        if as_json:
            document = {
                "old": {"name": before.name, "version": before.version},
                "new": {"name": after.name, "version": after.version},
                "changes": [change.model_dump() for change in changes],
                "version_needed": needed,
                "is_enough": is_enough,
            }
            typer.echo(json.dumps(document))
            if not is_enough:
                raise SystemExit(VersionTooLow.exit_code)
            return
        _print_changes(before, after, changes)
        if not is_enough:
            kind = "breaking changes" if needed.endswith(".0.0") else "changes"
            raise VersionTooLow(
                f"{after.name} {after.version} has {kind} against {before.version}",
                required=f"version {needed} or later",
                where=new,
                remedy=f"write `version: {needed}` into it, or take the changes back",
            )


def find_contract(reference: str) -> Contract:
    """The contract that `reference` names: a name in `data_contracts/`, or a path.

    Raises:
        DataMissing: there is no such contract.
        ContractInvalid: the file is no contract.
    """
    from bloomery.data_contracts.errors import DataMissing
    from bloomery.data_contracts.odcs.contract import read_contract

    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return read_contract(path)
    path = CONTRACTS / f"{reference}{SUFFIX}"
    if not path.is_file():
        known = sorted(one.name.removesuffix(SUFFIX) for one in CONTRACTS.glob(f"*{SUFFIX}"))
        raise DataMissing(
            f"there is no contract {reference!r}",
            required=f"one of {', '.join(known)}, or the path of a contract file",
            where=str(CONTRACTS),
            remedy="mend the name, or give a path that ends in .yaml",
        )
    return read_contract(path)


def as_document(contract: Contract) -> dict[str, Any]:
    """A contract's columns and rules as plain values."""
    return {
        "name": contract.name,
        "version": contract.version,
        "status": contract.status,
        "quarantine_limit": contract.quarantine_limit,
        "columns": [
            {
                "name": column.name,
                "logical_type": column.logical_type,
                "physical_type": column.arrow_type,
                "required": column.is_required,
                "unit": column.unit,
                "personal": column.personal,
                "unknown_category": column.unknown_category,
                "description": column.description,
            }
            for column in contract.columns
        ],
        "rules": [
            {"sentence": rule.sentence, **rule.model_dump(mode="json", exclude_defaults=True)}
            for rule in contract.rules()
        ],
    }


def _print_contract(contract: Contract) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from bloomery.data_contracts.odcs.html_page import tolerated, type_of

    console = Console(highlight=False)
    console.print(f"[bold]{escape(contract.name)} {contract.version}[/], {contract.status}")
    columns = Table("column", "type", "unit", "personal", "what it is", title="columns", title_justify="left")
    for column in contract.columns:
        words = (column.unit or "", column.personal or "", column.description or "")
        columns.add_row(*map(escape, (column.name, type_of(column), *words)))
    rules = Table("where", "rule", "severity", "tolerated", title="rules", title_justify="left")
    for rule in contract.rules():
        cells = (rule.target or "table", rule.sentence, rule.severity, tolerated(rule))
        rules.add_row(*map(escape, cells), style="yellow" if rule.severity == "warning" else "")
    console.print(columns)
    console.print(rules)
    console.print(f"at most {100 * contract.quarantine_limit:g}% of the rows may be set aside")


def _print_changes(old: Contract, new: Contract, changes: list[Change]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{escape(old.name)} {old.version} → {escape(new.name)} {new.version}: {len(changes)} changes")
    styles = {"breaking": "bold red", "compatible": "green", "note": "dim"}
    for change in changes:
        where = escape(change.where) or "contract"
        console.print(f"  [{styles[change.kind]}]{change.kind:<10}[/] {where}: {escape(change.sentence)}")


def write(output: Path, content: str) -> None:
    """Afterwards the file is whole, or as it was before. Raises StateUnwritable."""
    from bloomery.data_contracts.errors import StateUnwritable

    beside = output.with_name(f".{output.name}.tmp")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(content, encoding="utf-8")
        beside.replace(output)
    except OSError as failure:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise StateUnwritable(
            f"{output} cannot be written: {failure.strerror}",
            required="a file that can be written",
            where=str(output),
            remedy="give another --output",
        ) from failure
