"""`bloomery init`: drafts a contract and a recipe from data; both run without edits."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bloomery.data_contracts.errors import RecipeInvalid, StateUnwritable
from bloomery.data_contracts.recipe_sections.source_paths import source_scheme
from bloomery.flows.cli.exit_codes import reporting_errors

if TYPE_CHECKING:
    from bloomery.tasks.scaffolding.draft_planning import ColumnRoles, DraftPlan
    from bloomery.tasks.scaffolding.reader_options import ReaderOptions, UserOptions


class ProjectDraft(NamedTuple):
    """The files that were written, and what was inferred from the data."""

    contract: Path
    recipe: Path
    reader_options: ReaderOptions
    plan: DraftPlan
    names: dict[str, str]


def init(
    name: Annotated[str, typer.Argument(help="Name of the model: lowercase letters, digits and dashes.")],
    data: Annotated[
        list[str],
        typer.Option(help="File, folder, pattern or table; repeat for train=PATH and test=PATH."),
    ],
    label: Annotated[str, typer.Option(help="The column to predict.")],
    key: Annotated[
        str | None, typer.Option(help="A column that identifies rows; inferred or added by default.")
    ] = None,
    format: Annotated[str | None, typer.Option(help="File format; inferred by default.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter of CSV files, such as `;` or `tab`.")] = None,
    columns: Annotated[str | None, typer.Option(help="Column names for CSV files without a header: a,b,c.")] = None,
    path_pattern: Annotated[
        str | None, typer.Option(help="Regular expression; its named groups turn file paths into columns.")
    ] = None,
    query: Annotated[str | None, typer.Option(help="For sql:DRIVER, a query with ORDER BY.")] = None,
    uri_variable: Annotated[
        str | None, typer.Option(help="For sql:DRIVER, the environment variable with the database URI.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Draft a contract and a recipe from data."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with reporting_errors(as_json):
        from bloomery.tasks.scaffolding.draft_planning import ColumnRoles
        from bloomery.tasks.scaffolding.reader_options import UserOptions

        require_state_folder()
        options = UserOptions(
            format=format,
            delimiter="\t" if delimiter in ("tab", "\\t") else delimiter,
            columns=tuple(name.strip() for name in columns.split(",")) if columns is not None else None,
            path_pattern=path_pattern,
            query=query,
            uri_variable=uri_variable,
        )
        draft = write_drafts(name, data, ColumnRoles(label, key), options, output=output, force=force)
        if as_json:
            typer.echo(json.dumps(_document(draft)))
        else:
            _print(draft)


def write_drafts(
    name: str,
    sources: Sequence[str],
    roles: ColumnRoles,
    options: UserOptions,
    *,
    output: Path = Path(),
    force: bool = False,
) -> ProjectDraft:
    """Writes `NAME.odcs.yaml` and `NAME.yaml` into the folder `output`, once both can be read.

    Raises:
        RecipeInvalid: the name is invalid, or the options do not suit the source.
        StateUnwritable: a file exists already, or cannot be written.
        DataMissing, DataUnfit: there is no such data, or it does not suit a model.
    """
    from bloomery.tasks.infrastructure.settings import settings
    from bloomery.tasks.scaffolding.column_names import contract_names, rename_reserved_key
    from bloomery.tasks.scaffolding.contract_draft import draft_contract
    from bloomery.tasks.scaffolding.draft_planning import plan_draft
    from bloomery.tasks.scaffolding.profiler import profile_source
    from bloomery.tasks.scaffolding.reader_options import infer_reader_options, recipe_options
    from bloomery.tasks.scaffolding.recipe_draft import draft_recipe

    _require_name(name)
    contract, recipe = output / f"{name}.odcs.yaml", output / f"{name}.yaml"
    _require_absent([contract, recipe], force)
    reader_options = infer_reader_options(sources, roles.label, options)
    data = reader_options.data.with_absolute_paths(Path.cwd())
    with tempfile.TemporaryDirectory(dir=settings().home) as scratch:
        data_profile = profile_source(data, Path(scratch), roles.label, roles.key)
        names = contract_names([column.name for column in data_profile.columns])
        plan = plan_draft(data_profile, data, Path(scratch), names, roles, reader_options.array_shape)
    names = rename_reserved_key(names, plan.key.name)
    source_options = _relative_paths(recipe_options(data), output.resolve())
    texts = {
        contract: draft_contract(name, plan, names, ", ".join(sources)),
        recipe: draft_recipe(name, plan, names, source_options, reader_options.notes),
    }
    _write(texts, output)
    return ProjectDraft(contract, recipe, reader_options, plan, names)


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name):
        raise RecipeInvalid(
            f"{name!r} is not a valid model name",
            required="at most 41 lowercase letters, digits and dashes, a letter first",
            where="NAME",
            remedy="give another name",
        )


def _require_absent(paths: Sequence[Path], force: bool) -> None:
    existing = [str(path) for path in paths if path.exists()]
    if existing and not force:
        raise StateUnwritable(
            f"{' and '.join(existing)} {'exists' if len(existing) == 1 else 'exist'} already",
            required="no file of that name, since it may have been edited",
            where=str(paths[0].parent.absolute()),
            remedy="give another NAME or --output, or replace it with --force",
        )


def _relative_paths(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns the options with every path below `folder` relative to it."""

    def relative(path: str) -> str:
        is_below = source_scheme(path) is None and Path(path).is_relative_to(folder)
        return Path(path).relative_to(folder).as_posix() if is_below else path

    converters: dict[str, Callable[[Any], Any]] = {
        "source": relative,
        "labels": relative,
        "sources": lambda sources: [_relative_paths(source, folder) for source in sources],
    }
    return {name: converters[name](value) if name in converters else value for name, value in options.items()}


def _write(texts: dict[Path, str], folder: Path) -> None:
    """Writes all files or none: recipe and contract are read before they are moved into place."""
    from bloomery.flows.recipe.recipe import read_recipe

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".init-") as scratch:
            for path, text in texts.items():
                (Path(scratch) / path.name).write_text(text, encoding="utf-8")
            read_recipe(str(Path(scratch) / [*texts][-1].name))
            for path in texts:
                (Path(scratch) / path.name).replace(path)
    except OSError as failure:
        raise StateUnwritable(
            f"the drafts cannot be written: {failure.strerror or failure}",
            required="a writable folder",
            where=str(folder.absolute()),
            remedy="give another --output",
        ) from failure


def list_inferences(draft: ProjectDraft) -> list[tuple[str, str]]:
    """Returns each inferred option and its value, with the reason if there is one."""
    plan, notes = draft.plan, draft.reader_options.notes
    inferences = [
        (option, f"{value!r}: {notes[option]}")
        for option, value in draft.reader_options.data.model_dump(exclude_none=True).items()
        if option in notes and option != "header"
    ]
    inferences += [("header", notes["header"])] if "header" in notes else []
    inferences += _missing(draft)
    inferences += _conversions(draft)
    inferences += [
        ("quarantined", f"{draft.names[column.name]}: {column.describe_invalid()}")
        for column in plan.profile.columns
        if column.num_invalid
    ]
    if plan.profile.num_malformed:
        inferences.append(("malformed", f"{plan.profile.num_malformed:,} lines; {plan.profile.first_malformed}"))
    added = ", added" if plan.key.is_added else ""
    inferences.append(("key", f"{draft.names.get(plan.key.name, plan.key.name)}{added}: {plan.key.reason}"))
    if plan.label.standard_deviation is None:
        label = f"{len(plan.label.classes)} classes, the largest with {plan.label.majority_share:.1%} of the rows"
    else:
        label = f"numbers with a standard deviation of {plan.label.standard_deviation:.3g}, so a regression"
    inferences.append(("label", f"{draft.names[plan.label.name]}: {label}"))
    inferences += [("leakage", leak.describe(draft.names)) for leak in plan.leaks]
    inferences += [("left out", f"{name}: {why}") for name, why in plan.profile.left_out.items()]
    inferences += [
        (f"{source.options['kind']}", ", ".join(draft.names[name] for name in _columns_of(source.options)))
        for source in plan.inputs.inputs
    ]
    used = (plan.label.name, plan.key.name)
    inferences += [
        ("not used", f"{draft.names[name]}: {why}") for name, why in plan.inputs.unused.items() if name not in used
    ]
    return inferences


def _missing(draft: ProjectDraft) -> list[tuple[str, str]]:
    """Returns the texts that mark a missing value, with the columns of each."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for name, texts in draft.plan.profile.missing.items():
        columns.setdefault(texts, []).append(draft.names[name])
    return [("missing", f"{' '.join(map(repr, texts))} in {', '.join(names)}") for texts, names in columns.items()]


def _conversions(draft: ProjectDraft) -> list[tuple[str, str]]:
    """Returns how columns are converted on their way from the source to the contract's types."""
    names, profile = draft.names, draft.plan.profile
    conversions = [
        ("format", f"{names[column.name]}: {'; '.join((column.date_format, *column.date_notes))}")
        for column in profile.columns
        if column.date_format is not None
    ]
    conversions += [
        ("converted", f"{names[column.name]}: {column.conversion}") for column in profile.columns if column.conversion
    ]
    if profile.normalized:
        listed = ", ".join(names[name] for name in profile.normalized)
        conversions.append(("normalized", f"{listed}: without white space and characters that cannot be seen"))
    return conversions


def _columns_of(options: dict[str, Any]) -> list[str]:
    return list(options.get("columns") or [options["column"]])


def _document(draft: ProjectDraft) -> dict[str, Any]:
    profile = draft.plan.profile
    return {
        "contract": str(draft.contract),
        "recipe": str(draft.recipe),
        "num_rows": profile.num_rows,
        "num_malformed": profile.num_malformed,
        "num_columns": len(profile.columns),
        "num_quarantined": draft.plan.num_quarantined,
        "inferred": [{"name": name, "value": value} for name, value in list_inferences(draft)],
    }


def _print(draft: ProjectDraft) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, profile = Console(highlight=False), draft.plan.profile
    quarantined = f", at most {draft.plan.num_quarantined:,} to be quarantined" if draft.plan.num_quarantined else ""
    console.print(f"{profile.num_rows:,} rows, {len(profile.columns)} columns{quarantined}")
    table = Table("inferred", "value", box=None)
    inferences = list_inferences(draft)
    for what, value in inferences[:40]:
        table.add_row(what, escape(value if len(value) <= 400 else f"{value[:399]}…"))
    console.print(table)
    if len(inferences) > 40:
        console.print(f"… and {len(inferences) - 40} more, see the files")
    console.print(
        f"\nwritten: [bold]{escape(str(draft.contract))}[/] and [bold]{escape(str(draft.recipe))}[/]\n\nnext:"
    )
    console.print(f"  bloomery check {escape(str(draft.recipe))}", soft_wrap=True)
    console.print(f"  bloomery run {escape(str(draft.recipe))}", soft_wrap=True)
