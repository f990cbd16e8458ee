"""`bloomery init`: from data of one's own to a contract and a recipe that run as they are."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bloomery.data_contracts.errors import RecipeInvalid, StateUnwritable
from bloomery.data_contracts.recipe_sections.data_source import scheme_of
from bloomery.flows.cli.exit_codes import told

if TYPE_CHECKING:
    from bloomery.tasks.scaffolding.draft_planning import Plan
    from bloomery.tasks.scaffolding.reader_options import Guess, Stated


class Draft(NamedTuple):
    """What was written, and what it was guessed from."""

    contract: Path
    recipe: Path
    guessed: Guess
    plan: Plan
    names: dict[str, str]


def init(
    name: Annotated[str, typer.Argument(help="Of the model: small letters, digits and dashes.")],
    data: Annotated[
        list[str],
        typer.Option(help="A file, folder, pattern or table; or train=PATH and test=PATH, each as an option."),
    ],
    label: Annotated[str, typer.Option(help="The column that the model shall tell.")],
    key: Annotated[str | None, typer.Option(help="A column that tells rows apart; else one is found or added.")] = None,
    format: Annotated[str | None, typer.Option(help="Of the files, where their content does not tell it.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Between the cells of CSV; `tab` for a tabulator.")] = None,
    columns: Annotated[str | None, typer.Option(help="Names for a CSV without a header: a,b,c.")] = None,
    path_pattern: Annotated[
        str | None, typer.Option(help="A regular expression whose named groups become columns of a file's path.")
    ] = None,
    query: Annotated[str | None, typer.Option(help="For sql:DRIVER, the query, with an ORDER BY.")] = None,
    uri_variable: Annotated[
        str | None, typer.Option(help="For sql:DRIVER, the environment variable with the database's URI.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write into.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Look at data, and write a draft of a contract and of a recipe, with comments, that run as they are."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with told(as_json):
        from bloomery.tasks.scaffolding.reader_options import Stated

        require_state_folder()
        stated = Stated(
            format=format,
            delimiter="\t" if delimiter in ("tab", "\\t") else delimiter,
            columns=tuple(one.strip() for one in columns.split(",")) if columns is not None else None,
            path_pattern=path_pattern,
            query=query,
            uri_variable=uri_variable,
        )
        made = draft(name, data, label, stated, key=key, output=output, force=force)
        if as_json:
            typer.echo(json.dumps(_document(made)))
        else:
            _print(made)


def draft(
    name: str,
    sources: Sequence[str],
    label: str,
    stated: Stated,
    *,
    key: str | None = None,
    output: Path = Path(),
    force: bool = False,
) -> Draft:
    """Afterwards `NAME.odcs.yaml` and `NAME.yaml` lie in the folder `output`, and have been read back.

    Raises:
        RecipeInvalid: the name is none, or what was stated does not fit the source.
        StateUnwritable: a file is there already, or cannot be written.
        DataMissing, DataUnfit: there is no such data, or nothing can be learnt from it.
    """
    from bloomery.tasks.infrastructure.settings import settings
    from bloomery.tasks.scaffolding.column_names import identifiers, with_key
    from bloomery.tasks.scaffolding.contract_draft import contract_draft
    from bloomery.tasks.scaffolding.draft_planning import plan
    from bloomery.tasks.scaffolding.profiler import profile
    from bloomery.tasks.scaffolding.reader_options import guess, options_of
    from bloomery.tasks.scaffolding.recipe_draft import recipe_draft

    _require_name(name)
    contract, recipe = output / f"{name}.odcs.yaml", output / f"{name}.yaml"
    _require_free([contract, recipe], force)
    guessed = guess(sources, label, stated)
    data = guessed.data.absolute(Path.cwd())
    with tempfile.TemporaryDirectory(dir=settings().home) as scratch:
        seen = profile(data, Path(scratch))
        names = identifiers([column.name for column in seen.columns])
        planned = plan(seen, data, Path(scratch), names, label=label, key=key, shape=guessed.shape)
    names = with_key(names, planned.key.name)
    options = _beside(options_of(data), output.resolve())
    texts = {
        contract: contract_draft(name, planned, names, ", ".join(sources)),
        recipe: recipe_draft(name, planned, names, options, guessed.notes),
    }
    _write(texts, output)
    return Draft(contract, recipe, guessed, planned, names)


def _require_name(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name):
        raise RecipeInvalid(
            f"{name!r} is no name of a model",
            required="small letters, digits and dashes, a letter first, at most 41",
            where="NAME",
            remedy="give another name",
        )


def _require_free(paths: Sequence[Path], force: bool) -> None:
    there = [str(path) for path in paths if path.exists()]
    if there and not force:
        raise StateUnwritable(
            f"{' and '.join(there)} {'is' if len(there) == 1 else 'are'} there already",
            required="no file of that name, since it may have been edited",
            where=str(paths[0].parent.absolute()),
            remedy="give another NAME or --output; or --force, to replace what is there",
        )


def _beside(options: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The options with every path below `folder` as seen from there."""

    def seen(path: str) -> str:
        is_below = scheme_of(path) is None and Path(path).is_relative_to(folder)
        return Path(path).relative_to(folder).as_posix() if is_below else path

    moved: dict[str, Callable[[Any], Any]] = {
        "source": seen,
        "labels": seen,
        "sources": lambda origins: [_beside(one, folder) for one in origins],
    }
    return {name: moved[name](value) if name in moved else value for name, value in options.items()}


def _write(texts: dict[Path, str], folder: Path) -> None:
    """Write all files or none: they are read as a recipe and its contract before they are moved into place."""
    from bloomery.flows.recipe.recipe import read_recipe

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".init-") as beside:
            for path, text in texts.items():
                (Path(beside) / path.name).write_text(text, encoding="utf-8")
            read_recipe(str(Path(beside) / [*texts][-1].name))
            for path in texts:
                (Path(beside) / path.name).replace(path)
    except OSError as failure:
        raise StateUnwritable(
            f"the drafts cannot be written: {failure.strerror or failure}",
            required="a folder that can be written",
            where=str(folder.absolute()),
            remedy="give another --output",
        ) from failure


def _guesses(made: Draft) -> list[tuple[str, str]]:
    """What was guessed, in words, and for text what from."""
    plan, notes = made.plan, made.guessed.notes
    found = [
        (option, f"{value!r}: {notes[option]}")
        for option, value in made.guessed.data.model_dump(exclude_none=True).items()
        if option in notes and option != "header"
    ]
    found += [("header", notes["header"])] if "header" in notes else []
    found += [("missing", " ".join(plan.profile.missing))] if plan.profile.missing else []
    if plan.profile.num_malformed:
        found.append(("no rows", f"{plan.profile.num_malformed:,} lines; {plan.profile.malformed}"))
    added = ", added: no column tells rows apart" if plan.key.is_added else ""
    found.append(("key", f"{made.names.get(plan.key.name, plan.key.name)}{added}"))
    if plan.label.deviation is None:
        told = f"{len(plan.label.classes)} classes, the largest with {plan.label.majority:.1%} of the rows"
    else:
        told = f"figures with a standard deviation of {plan.label.deviation:.3g}, so a regression"
    found.append(("label", f"{made.names[plan.label.name]}: {told}"))
    found += [
        (f"{one.options['kind']}", ", ".join(made.names[name] for name in _columns_of(one.options)))
        for one in plan.inputs.planned
    ]
    known = (plan.label.name, plan.key.name)
    found += [
        ("left out", f"{made.names[name]}: {why}") for name, why in plan.inputs.left_out.items() if name not in known
    ]
    return found


def _columns_of(options: dict[str, Any]) -> list[str]:
    return list(options.get("columns") or [options["column"]])


def _document(made: Draft) -> dict[str, Any]:
    profile = made.plan.profile
    return {
        "contract": str(made.contract),
        "recipe": str(made.recipe),
        "num_rows": profile.num_rows,
        "num_malformed": profile.num_malformed,
        "num_columns": len(profile.columns),
        "num_set_aside": made.plan.num_aside,
        "guessed": [{"what": what, "as": value} for what, value in _guesses(made)],
    }


def _print(made: Draft) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, profile = Console(highlight=False), made.plan.profile
    aside = f", at most {made.plan.num_aside:,} to be set aside" if made.plan.num_aside else ""
    console.print(f"{profile.num_rows:,} rows, {len(profile.columns)} columns{aside}")
    table = Table("guessed", "as", box=None)
    guesses = _guesses(made)
    for what, value in guesses[:40]:
        table.add_row(what, escape(value if len(value) <= 400 else f"{value[:399]}…"))
    console.print(table)
    if len(guesses) > 40:
        console.print(f"… and {len(guesses) - 40} more, as the files say")
    console.print(f"\nwritten [bold]{escape(str(made.contract))}[/] and [bold]{escape(str(made.recipe))}[/]\n\nnext:")
    console.print(f"  bloomery check {escape(str(made.recipe))}", soft_wrap=True)
    console.print(f"  bloomery run {escape(str(made.recipe))}", soft_wrap=True)
