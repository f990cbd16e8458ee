"""`bloomery init`: drafts a contract and a recipe from data; both run without edits."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from bloomery.flows.cli.commands import reading_options, task_options
from bloomery.flows.cli.commands.draft_files import relative_paths, require_absent, require_name, write_files
from bloomery.flows.cli.exit_codes import reporting_errors

if TYPE_CHECKING:
    from bloomery.data_contracts.recipe_sections.data_source import DataSource
    from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles, DraftPlan
    from bloomery.tasks.scaffolding.planning.label_planning import LabelPlan
    from bloomery.tasks.scaffolding.profiling.number_inference import InferredNumbers
    from bloomery.tasks.scaffolding.profiling.profiler import SourceProfile
    from bloomery.tasks.scaffolding.source_options.reader_options import ReaderOptions, UserOptions


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
    label: task_options.Label,
    key: Annotated[
        str | None, typer.Option(help="A column that identifies rows; inferred or added by default.")
    ] = None,
    task: task_options.Task = None,
    label_separator: task_options.LabelSeparator = None,
    order: task_options.Order = None,
    time: task_options.Time = None,
    group: task_options.Group = None,
    horizon: task_options.Horizon = None,
    lags: task_options.Lags = None,
    split: task_options.Split = None,
    checkpoint: task_options.PretrainedCheckpoint = None,
    format: reading_options.Format = None,
    delimiter: reading_options.Delimiter = None,
    columns: reading_options.Columns = None,
    path_pattern: reading_options.PathPattern = None,
    query: reading_options.Query = None,
    uri_variable: reading_options.UriVariable = None,
    drop: reading_options.Drop = None,
    encoding: reading_options.Encoding = None,
    quote: reading_options.Quote = None,
    escape: reading_options.Escape = None,
    header: reading_options.Header = None,
    missing: reading_options.Missing = None,
    unquoted_missing: reading_options.UnquotedMissing = None,
    strip: reading_options.Strip = None,
    comment: reading_options.Comment = None,
    skip_lines: reading_options.SkipLines = None,
    skip_initial_space: reading_options.SkipInitialSpace = None,
    trailing_delimiter: reading_options.TrailingDelimiter = None,
    decimal: reading_options.Decimal = None,
    thousands: reading_options.Thousands = None,
    units: reading_options.Units = None,
    numbers: reading_options.Numbers = None,
    records: reading_options.Records = None,
    unit: reading_options.Unit = None,
    mode: reading_options.Mode = None,
    size: reading_options.Size = None,
    sample_rate: reading_options.SampleRate = None,
    resample: reading_options.Resample = None,
    mono: reading_options.Mono = None,
    labels: reading_options.Labels = None,
    version: reading_options.Version = None,
    files: reading_options.Files = None,
    sheet: reading_options.Sheet = None,
    table: reading_options.Table = None,
    arrays: reading_options.Arrays = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write to.")] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Draft a contract and a recipe from data."""
    from bloomery.tasks.infrastructure.settings import require_state_folder

    with reporting_errors(as_json):
        from bloomery.tasks.scaffolding.planning.draft_planning import ColumnRoles
        from bloomery.tasks.scaffolding.planning.task_inference import parse_request
        from bloomery.tasks.scaffolding.source_options.reader_options import UserOptions

        require_state_folder()
        groups = task_options.parse_groups(group)
        task_request = parse_request(task, horizon, lags, split, reading_options.parse_names(order))
        columns_named = tuple(dict.fromkeys(label))
        roles = ColumnRoles(
            columns_named[0], key, time, groups, task_request, columns_named, label_separator, checkpoint=checkpoint
        )
        options = UserOptions(
            format=format,
            delimiter=reading_options.parse_character(delimiter),
            columns=reading_options.parse_names(columns),
            path_pattern=path_pattern,
            query=query,
            uri_variable=uri_variable,
            drop=reading_options.parse_names(drop),
            encoding=encoding,
            quote=quote,
            escape=reading_options.parse_character(escape),
            header=header,
            missing=("", *missing) if missing else None,
            unquoted_missing=tuple(unquoted_missing) if unquoted_missing else None,
            strip=strip,
            comment=comment,
            skip_lines=skip_lines,
            skip_initial_space=skip_initial_space,
            trailing_delimiter=trailing_delimiter,
            decimal=decimal,
            thousands=thousands,
            units=tuple(units) if units else None,
            numbers=reading_options.parse_names(numbers),
            records=records,
            unit=unit,
            mode=mode,
            size=reading_options.parse_size(size),
            sample_rate=sample_rate,
            resample=resample,
            mono=mono,
            labels=labels,
            version=version,
            files=files,
            sheet=sheet,
            table=table,
            arrays=reading_options.parse_arrays(arrays),
        )
        draft = write_drafts(name, data, roles, options, output=output, force=force)
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
    """Writes `NAME.odcs.yaml` and `NAME.yaml` into the folder `output`. Drafts that cannot run yet are kept, too.

    Raises:
        RecipeInvalid: the name is invalid, or the options do not suit the source.
        StateUnwritable: a file exists already, or cannot be written.
        DataMissing, DataUnfit: there is no such data, or it does not suit a model.
    """
    from bloomery.tasks.infrastructure.settings import settings
    from bloomery.tasks.ingest.option_names import drafting
    from bloomery.tasks.scaffolding.contract_draft import draft_contract
    from bloomery.tasks.scaffolding.planning.draft_planning import find_label_sets, plan_draft
    from bloomery.tasks.scaffolding.planning.file_labels import require_file_labels
    from bloomery.tasks.scaffolding.planning.pretrained_inputs import find_checkpoint, media_target
    from bloomery.tasks.scaffolding.profiling.column_names import contract_names
    from bloomery.tasks.scaffolding.profiling.profiler import profile_source
    from bloomery.tasks.scaffolding.profiling.text_shapes import measure_texts
    from bloomery.tasks.scaffolding.recipe_draft import draft_recipe
    from bloomery.tasks.scaffolding.source_options.file_column_options import find_file_columns
    from bloomery.tasks.scaffolding.source_options.media_options import ANY_TARGET
    from bloomery.tasks.scaffolding.source_options.reader_options import infer_reader_options, recipe_options

    require_name(name)
    contract, recipe = output / f"{name}.odcs.yaml", output / f"{name}.yaml"
    require_absent([contract, recipe], force)
    target = ANY_TARGET if roles.checkpoint is None else media_target(find_checkpoint(roles.checkpoint))
    with drafting(), tempfile.TemporaryDirectory(dir=settings().home) as scratch:
        reader_options = infer_reader_options(sources, roles.label, options, target)
        data = reader_options.data.with_absolute_paths(Path.cwd())
        data_profile = profile_source(data, Path(scratch), roles.label, roles.key)
        data, reader_options = _add_inferred_options(data, reader_options, data_profile.reading_options)
        names = contract_names([column.name for column in data_profile.columns])
        roles_of_columns = (roles.label, roles.key)
        data_profile, media = find_file_columns(data_profile, data, Path(scratch), names, roles_of_columns, target)
        data, reader_options = _add_inferred_options(data, reader_options, media)
        require_file_labels(data_profile, data, roles.label)
        data_profile = measure_texts(data_profile, Path(scratch))
        roles = _add_word_tags(data_profile, Path(scratch), names, roles)
        data_profile, roles, lists = find_label_sets(data_profile, data, Path(scratch), names, roles)
        data, reader_options = _add_inferred_options(data, reader_options, lists)
        plan = plan_draft(data_profile, data, Path(scratch), names, roles, reader_options.array_shape)
    source_options = relative_paths(recipe_options(data), output.resolve())
    texts = {
        contract: draft_contract(name, plan, names, ", ".join(sources)),
        recipe: draft_recipe(name, plan, names, source_options, reader_options.notes),
    }
    write_files(texts, output)
    return ProjectDraft(contract, recipe, reader_options, plan, names)


def _add_inferred_options(
    data: DataSource, reader_options: ReaderOptions, numbers: InferredNumbers
) -> tuple[DataSource, ReaderOptions]:
    """Returns the source with the options that read its numbers and arrays, and the reasons for them."""
    if not numbers.options:
        return data, reader_options
    stated = {name for name, note in reader_options.notes.items() if note == "as requested"}
    notes = {**reader_options.notes, **{name: note for name, note in numbers.notes.items() if name not in stated}}
    return (
        data.model_copy(update=numbers.options),
        reader_options._replace(data=reader_options.data.model_copy(update=numbers.options), notes=notes),
    )


def _add_word_tags(profile: SourceProfile, scratch: Path, names: dict[str, str], roles: ColumnRoles) -> ColumnRoles:
    """Returns the roles with the tags of words, if the label is an array of them or the user says so."""
    from bloomery.tasks.scaffolding.planning.word_tags import find_word_tags
    from bloomery.tasks.scaffolding.profiling.column_names import find_column, split_names

    labels = split_names(roles.labels, names) or (roles.label,)
    if roles.task.task not in (None, "tagging") or len(labels) > 1 or roles.separator is not None:
        return roles
    label = find_column(labels[0], names, "--label")
    tags = find_word_tags(profile, scratch, label, is_requested=roles.task.task == "tagging")
    if tags is None:
        return roles
    return replace(roles, tags=tags, task=replace(roles.task, task="tagging"))


def list_inferences(draft: ProjectDraft) -> list[tuple[str, str]]:
    """Returns each inferred option and its value, with the reason if there is one."""
    from bloomery.tasks.scaffolding.profiling.column_names import format_names

    plan, notes = draft.plan, draft.reader_options.notes
    inferences = [
        (option, f"{_describe_value(value)}: {notes[option]}")
        for option, value in draft.reader_options.data.model_dump(exclude_none=True).items()
        if option in notes and option not in ("header", "lists", "media")  # sets of labels have lines of their own
    ]
    inferences += [("media", notes["media"])] if "media" in notes else []
    inferences += [("header", notes["header"])] if "header" in notes else []
    inferences += _missing(draft)
    inferences += _conversions(draft)
    inferences += [
        ("quarantined", f"{draft.names[column.name]}: {column.describe_invalid()}")
        for column in plan.profile.columns
        if column.num_invalid
    ]
    if plan.profile.num_malformed:
        unit = "files" if draft.reader_options.data.kind in ("images", "audio") else "lines"
        inferences.append(("malformed", f"{plan.profile.num_malformed:,} {unit}; {plan.profile.first_malformed}"))
    added = ", added" if plan.key.is_added else ""
    inferences.append(("key", f"{draft.names.get(plan.key.name, plan.key.name)}{added}: {plan.key.reason}"))
    inferences.append(("task", f"{plan.task.name}: {plan.task.reason}"))
    label = _describe_label(plan.label) + plan.label.describe_unused_rows()
    inferences.append(("label", f"{draft.names[plan.label.name]}: {label}"))
    for other in plan.label.others:
        inferences.append(
            ("label", f"{draft.names[other.name]}: {_describe_label(other)}{other.describe_unused_rows()}")
        )
    inferences += plan.describe_order()
    inferences += [
        ("leakage", f"{leak.describe(draft.names)}: --drop {shlex.quote(format_names(leak.columns))}")
        for leak in plan.leaks
    ]
    inferences += [("left out", f"{name}: {why}") for name, why in plan.profile.left_out.items()]
    inferences += [
        (f"{source.options['kind']}", ", ".join(draft.names[name] for name in _columns_of(source.options)))
        for source in plan.inputs.inputs
    ]
    inferences += _describe_checkpoint(plan)
    used = (*plan.label_names, plan.key.name)
    inferences += [
        ("not used", f"{draft.names[name]}: {why}") for name, why in plan.inputs.unused.items() if name not in used
    ]
    return inferences


def _describe_checkpoint(plan: DraftPlan) -> list[tuple[str, str]]:
    """Returns the checkpoint and what it reads; without one, whether it would help."""
    from bloomery.tasks.scaffolding.planning.pretrained_inputs import name_inputs, suggest_checkpoint

    if plan.checkpoint is not None:
        return [
            ("checkpoint", f"{plan.checkpoint.reference}: it reads the {name_inputs(plan.checkpoint)}, as requested")
        ]
    advice = suggest_checkpoint(plan.inputs, plan.num_usable_rows, len(plan.label.classes))
    return [("checkpoint", advice)] if advice else []


def _describe_label(label: LabelPlan) -> str:
    from bloomery.data_contracts.records.score_format import format_number

    if label.tags is not None:
        return label.tags.describe()
    if label.sets is not None:
        return label.sets.describe()
    if label.standard_deviation is None:
        return f"{len(label.classes)} classes, the largest with {label.majority_share:.1%} of the rows"
    return f"numbers with a standard deviation of {format_number(label.standard_deviation, digits=3)}"


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


def _describe_value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "; ".join(f"{_describe_value(item)} in {name}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_describe_source(item) if isinstance(item, dict) else str(item) or "''" for item in value)
    return repr(value)


def _describe_source(source: dict[str, Any]) -> str:
    """Returns the split of a source and what it reads: `train from ^train/`."""
    return f"{source.get('part', 'rows')} from {source.get('files') or source.get('source')}"


def _columns_of(options: dict[str, Any]) -> list[str]:
    return list(options.get("columns") or [options["column"]])


def _document(draft: ProjectDraft) -> dict[str, Any]:
    profile = draft.plan.profile
    return {
        "contract": str(draft.contract),
        "recipe": str(draft.recipe),
        "task": draft.plan.task.name,
        "num_rows": profile.num_rows,
        "num_malformed": profile.num_malformed,
        "num_columns": len(profile.columns),
        "num_quarantined": draft.plan.num_quarantined,
        "inferred": [{"name": name, "value": value} for name, value in list_inferences(draft)],
    }


def _print(draft: ProjectDraft) -> None:
    from rich.markup import escape
    from rich.table import Table

    from bloomery.flows.cli.display import LineConsole

    console, profile = LineConsole(highlight=False), draft.plan.profile
    quarantined = f", at most {draft.plan.num_quarantined:,} to be quarantined" if draft.plan.num_quarantined else ""
    console.print(f"{profile.num_rows:,} rows, {len(profile.columns)} columns{quarantined}")
    table = Table("inferred", "value", box=None)
    inferences = list_inferences(draft)
    for what, value in inferences[:40]:
        table.add_row(escape(what), escape(value if len(value) <= 400 else f"{value[:399]}…"))
    console.print(table)
    if len(inferences) > 40:
        console.print(f"… and {len(inferences) - 40} more, see the files")
    files = f"[bold]{escape(str(draft.contract))}[/] and [bold]{escape(str(draft.recipe))}[/]"
    console.print(f"\nwritten: {files}\n\nnext:", soft_wrap=True)
    recipe = escape(shlex.quote(str(draft.recipe)))
    console.print(f"  bloomery check {recipe}", soft_wrap=True)
    console.print(f"  bloomery run {recipe}", soft_wrap=True)
