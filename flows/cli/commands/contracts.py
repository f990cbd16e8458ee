"""`bloomery contract`: shows contracts, writes their pages and references, and compares versions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bloomery.flows.cli.commands.reading_options import parse_names
from bloomery.flows.cli.exit_codes import command_session, reporting_errors

if TYPE_CHECKING:
    from rich.console import Console

    from bloomery.data_contracts.odcs.compatibility import Change
    from bloomery.data_contracts.odcs.contract import Contract

CONTRACTS = Path(__file__).resolve().parents[3] / "data_contracts" / "contracts"
SUFFIX = ".odcs.yaml"

app = typer.Typer(
    help="Show a contract, write its page or reference, or compare versions.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ContractName = Annotated[str, typer.Argument(help="A contract, by name or path.")]
TableName = Annotated[str | None, typer.Option("--table", help="Only this table, where the contract has several.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


@app.command()
def show(contract: ContractName, table: TableName = None, as_json: AsJson = False) -> None:
    """Show a contract's columns, rules, and what is not checked."""
    with reporting_errors(as_json):
        parsed = find_contract(contract, table)
        if as_json:
            typer.echo(json.dumps(contract_document(parsed)))
        else:
            _print_contract(parsed)


@app.command()
def page(
    contract: ContractName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The HTML file to write.")],
    table: TableName = None,
    as_json: AsJson = False,
) -> None:
    """Write a contract as one HTML page."""
    with reporting_errors(as_json):
        from bloomery.data_contracts.odcs.html_page import render_contract_page as page_of

        parsed = find_contract(contract, table)
        write_output(output, page_of(parsed))
        typer.echo(json.dumps({"page": str(output)}) if as_json else f"{parsed.name} {parsed.version}: {output}")


@app.command()
def reference(
    recipe: Annotated[str, typer.Argument(help="The recipe whose valid rows become the reference.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file NAME.reference.json beside the contract.")],
    columns: Annotated[str, typer.Option(help="Comma-separated columns; defaults to all with a distribution.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write the distributions of a recipe's valid rows as a reference."""
    with command_session(as_json, "reference") as out:
        from bloomery.flows.recipe.recipe import read_recipe
        from bloomery.tasks.infrastructure.settings import settings
        from bloomery.tasks.ingest.stage import ingest, locate_source
        from bloomery.tasks.validate.reference_distribution import measure_reference as reference_of
        from bloomery.tasks.validate.stage import validate

        spec = read_recipe(recipe)
        source = locate_source(spec.data, spec.contract.personal_columns)
        valid_rows = validate(ingest(source), spec.contract)
        names = [name for name in parse_names(columns) or () if name]
        distributions = reference_of(settings().path(valid_rows.uri), spec.contract, names)
        write_output(output, distributions.model_dump_json(by_alias=True, exclude_defaults=True, indent=1) + "\n")
        document = {"reference": str(output), "columns": list(distributions.columns)}
        out.file.write(json.dumps(document) + "\n" if as_json else f"{', '.join(distributions.columns)}: {output}\n")


@app.command()
def diff(
    old: ContractName,
    new: ContractName,
    as_json: AsJson = False,
) -> None:
    """List breaking and compatible changes; exit code 3 requires a higher version."""
    with reporting_errors(as_json):
        from bloomery.data_contracts.errors import VersionTooLow
        from bloomery.data_contracts.odcs.compatibility import diff_contracts, is_high_enough, required_version

        before, after = find_contract(old), find_contract(new)
        changes = diff_contracts(before, after)
        needed = required_version(before, changes)
        is_enough = is_high_enough(before, after, changes)
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
            changed = "breaking changes" if any(change.kind == "breaking" for change in changes) else "changes"
            raise VersionTooLow(
                f"{after.name} {after.version} has {changed} against {before.version}",
                required=f"another version than {after.version}" if needed is None else f"version {needed} or later",
                where=new,
                remedy=f"set `version: {needed or 'NEXT'}` in it, or revert the changes",
            )


def find_contract(reference: str, table: str | None = None) -> Contract:
    """Reads the contract that `reference` names: a name in `data_contracts/contracts/`, or a path.

    With `table` it is the contract of that table alone.

    Raises:
        DataMissing: there is no such contract.
        ContractInvalid: the file is not a contract, or has no such table.
    """
    from bloomery.data_contracts.odcs.contract import read_contract

    contract = read_contract(_find_path(reference))
    return contract if table is None else contract.select_table(table)


def _find_path(reference: str) -> Path:
    from bloomery.data_contracts.documents.similar_names import suggest_names
    from bloomery.data_contracts.errors import DataMissing

    path = Path(reference)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    for folder in (Path(), CONTRACTS):
        path = folder / f"{reference}{SUFFIX}"
        if path.is_file():
            return path
    files = [file for folder in (Path(), CONTRACTS) for file in folder.glob(f"*{SUFFIX}")]
    names = sorted({file.name.removesuffix(SUFFIX) for file in files})
    raise DataMissing(
        f"there is no contract {reference!r}{suggest_names(reference, names)}",
        required=f"one of {', '.join(names)}, or the path of a contract file",
        where=f"{CONTRACTS} and {Path.cwd()}",
        remedy="correct the name, or give a path that ends in .yaml",
    )


def contract_document(contract: Contract) -> dict[str, Any]:
    """Returns a contract's tables with their columns and rules as plain values, and the contract as in its file.

    A contract of one table also has the table's columns and rules at the top.
    """
    tables = [_table_document(contract.select_table(table.name)) for table in contract.schema_]
    top = {key: value for key, value in tables[0].items() if key != "name"} if len(tables) == 1 else {}
    return {
        "name": contract.name,
        "version": contract.version,
        "status": contract.status,
        **top,
        "tables": tables,
        "contract": contract.document(),
    }


def _table_document(contract: Contract) -> dict[str, Any]:
    return {
        "name": contract.table.name,
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
        "unchecked": [item.model_dump() for item in contract.unchecked],
    }


def _print_contract(contract: Contract) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, emoji=False)
    console.print(f"[bold]{escape(contract.name)} {escape(contract.version)}[/], {escape(contract.status)}")
    for table in contract.schema_:
        if len(contract.schema_) > 1:
            console.print(f"\n[bold]table {escape(table.name)}[/] {escape(table.description or '')}")
        _print_table(console, contract.select_table(table.name))
    if not contract.schema_:
        console.print("no tables: its schema is empty")
        for level in contract.sla_properties:
            console.print(escape(f"  service level {level.property_} {level.value} {level.unit or ''}: not checked"))


def _print_table(console: Console, contract: Contract) -> None:
    from rich.markup import escape
    from rich.table import Table

    from bloomery.data_contracts.odcs.html_page import describe_type, format_tolerance

    columns = Table("column", "type", "unit", "personal", "description", title="columns", title_justify="left")
    for column in contract.columns:
        details = (column.unit or "", column.personal or "", column.description or "")
        columns.add_row(*map(escape, (column.name, describe_type(column), *details)))
    rules = Table("column", "rule", "severity", "tolerance", title="rules", title_justify="left")
    for rule in contract.rules():
        cells = (rule.target or "table", rule.sentence, rule.severity, format_tolerance(rule))
        rules.add_row(*map(escape, cells), style="yellow" if rule.severity == "warning" else "")
    if contract.columns:
        console.print(columns)
    if contract.rules():
        console.print(rules)
    if contract.unchecked:
        console.print("not checked:")
    for item in contract.unchecked:
        console.print(f"  {escape(str(item))}", style="dim")
    console.print(f"at most {100 * contract.quarantine_limit:g}% of the rows may be quarantined")


def _print_changes(old: Contract, new: Contract, changes: list[Change]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True, emoji=False)
    console.print(
        f"{escape(old.name)} {escape(old.version)} → {escape(new.name)} {escape(new.version)}: {len(changes)} changes"
    )
    styles = {"breaking": "bold red", "compatible": "green", "note": "dim"}
    for change in changes:
        where = escape(change.where) or "contract"
        console.print(f"  [{styles[change.kind]}]{change.kind:<10}[/] {where}: {escape(change.sentence)}")


def write_output(output: Path, content: str) -> None:
    """Writes the file atomically. Raises StateUnwritable."""
    from bloomery.data_contracts.documents.files import write_text
    from bloomery.data_contracts.errors import StateUnwritable

    try:
        write_text(output, content)
    except OSError as failure:
        raise StateUnwritable(
            f"{output} cannot be written: {failure.strerror}",
            required="a writable path",
            where=str(output),
            remedy="give another --output",
        ) from failure
