"""`bloomery.init`, which drafts a contract and a recipe from a table or from files, and `bloomery.run`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import SettingInvalid, StateUnwritable
from bloomery.data_contracts.records.records import Release
from bloomery.flows.python_api.command_process import call_command
from bloomery.flows.python_api.displays import html_table
from bloomery.flows.python_api.frames import is_frame, write_frame
from bloomery.flows.python_api.models import Model, load


@dataclass(frozen=True)
class Draft:
    """The files that `init` has written, and what it has inferred from the data."""

    name: str
    recipe: Path
    contract: Path
    num_rows: int
    num_quarantined: int
    num_columns: int
    inferred: tuple[tuple[str, str], ...]

    def run(self) -> Model:
        """Runs the recipe, as `bloomery.run` does."""
        return run(self)

    @property
    def summary(self) -> str:
        """The numbers of rows and columns."""
        quarantined = f", at most {self.num_quarantined:,} to be quarantined" if self.num_quarantined else ""
        return f"{self.name}: {self.num_rows:,} rows, {self.num_columns:,} columns{quarantined}"

    @property
    def _files(self) -> str:
        return f"written: {self.contract} and {self.recipe}"

    def __str__(self) -> str:
        return "\n".join([self.summary, *(f"  {what:<16} {value}" for what, value in self.inferred), self._files])

    def _repr_html_(self) -> str:
        note = f"{self._files}; edit them, or run them with bloomery.run({str(self.recipe)!r})"
        return html_table(self.summary, ("inferred", "value"), self.inferred, note)


def init(
    data: Any,
    *,
    label: Any,
    name: str | None = None,
    output: str | Path = ".",
    force: bool = False,
    **options: Any,
) -> Draft:
    """Drafts a contract and a recipe from data, as `bloomery init` does.

    Args:
        data: A DataFrame of pandas or Polars, an Arrow table, or a file, folder, pattern or table as for `--data`; or
            several by split, such as `{"train": a, "test": b}`. A table is written to `NAME.parquet` in `output`.
        label: The column to predict. A list of several: classes, numbers, or sets of labels as columns of 0 and 1.
        name: Name of the model; by default that of the file.
        output: The folder to write to.
        force: Whether existing files are replaced.
        options: Other options of `bloomery init`, such as `key="id"` or `delimiter=";"`; a list for several values.

    Raises:
        BloomeryError: as the command does; its text says what to do.
    """
    parts = _parts_of(data)
    model_name, folder = name or _name_of(data), Path(output)
    labels = list(label) if isinstance(label, Sequence) and not isinstance(label, str) else [label]
    arguments = [word for column in labels for word in ("--label", str(column))]
    arguments += ["--output", str(folder), *(["--force"] if force else []), *_to_arguments(options)]
    new_files: list[Path] = []
    try:
        for part, source in parts:
            if is_frame(source):
                path = folder / (f"{model_name}-{part}.parquet" if part else f"{model_name}.parquet")
                _require_absent(path, force)
                if not path.exists():
                    new_files.append(path)
                write_frame(source, path)
                source = path
            arguments += ["--data", f"{part}={source}" if part else str(source)]
        document = call_command("init", model_name, *arguments)
    except BaseException:
        if not (folder / f"{model_name}.yaml").exists():
            for path in new_files:
                path.unlink(missing_ok=True)
        raise
    return Draft(
        name=model_name,
        recipe=Path(document["recipe"]),
        contract=Path(document["contract"]),
        num_rows=document["num_rows"],
        num_quarantined=document["num_quarantined"],
        num_columns=document["num_columns"],
        inferred=tuple((item["name"], item["value"]) for item in document["inferred"]),
    )


def run(recipe: str | Path | Draft, period: str | None = None) -> Model:
    """Runs a recipe as `bloomery run` does, and returns the version that it has released.

    Stages that have run before are found. An interrupted run continues after its last complete stage.

    Args:
        recipe: A recipe file, the name of a recipe, or a draft.
        period: The period of a dated recipe, such as `2019-02`; by default the latest.

    Raises:
        BloomeryError: as the command does, such as NoCandidate or ReleaseRefused; its text says what to do.
    """
    reference = str(recipe.recipe if isinstance(recipe, Draft) else recipe)
    document = call_command("run", reference, *([] if period is None else ["--period", period]))
    release = Release.model_validate(document)
    return load(f"{release.name}:{release.version}")


def _parts_of(data: Any) -> list[tuple[str, Any]]:
    """The sources, each with the name of its split or "". Raises SettingInvalid for what is no source.

    Each of several tables needs a split, whose name becomes part of its file's name.
    """
    if isinstance(data, Mapping):
        parts = [(str(name), source) for name, source in data.items()]
    elif is_frame(data) or not isinstance(data, Sequence) or isinstance(data, str):
        parts = [("", data)]
    else:
        parts = [("", source) for source in data]
    unreadable = [source for _, source in parts if not (is_frame(source) or isinstance(source, str | Path))]
    if unreadable or not parts:
        raise SettingInvalid(
            f"the data is {f'a {type(unreadable[0]).__name__}' if unreadable else 'empty'}",
            required="a DataFrame of pandas or Polars, an Arrow table, or a path; or several of them by split, such as "
            '{"train": a, "test": b}',
            where="the argument `data` of bloomery.init",
            remedy=_conversion_of(unreadable),
        )
    if len(parts) > 1 and any(not part and is_frame(source) for part, source in parts):
        raise SettingInvalid(
            f"the data is a list of {len(parts)} tables or paths, and the tables have no names",
            required='one table, or several by split, such as {"train": a, "test": b}',
            where="the argument `data` of bloomery.init",
            remedy="name the splits; or join the tables to one, such as with pandas.concat",
        )
    return parts


def _name_of(data: Any) -> str:
    """The name of the first file, as a model may be named. Raises SettingInvalid for a table, which has none."""
    source = data[0] if isinstance(data, list | tuple) else data
    if not isinstance(source, str | Path):
        raise SettingInvalid(
            f"a {type(data).__name__} has no name",
            required="a name for the model",
            where="the argument `name` of bloomery.init",
            remedy='give one, such as name="wine"',
        )
    stem = Path(str(source).rpartition("=")[2].rpartition(":")[2]).name.partition(".")[0]
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")[:41] or "model"


def _to_arguments(options: Mapping[str, Any]) -> list[str]:
    """The options as the command line has them. Raises SettingInvalid for one that it does not have."""
    import typer

    from bloomery.flows.cli.main import app

    command: Any = typer.main.get_command(app)
    parameters = {parameter.name: parameter for parameter in command.commands["init"].params}
    known = set(parameters) - {"name", "data", "label", "output", "force", "as_json", "help"}
    unknown = sorted(set(options) - known)
    if unknown:
        raise SettingInvalid(
            f"there is no option {', '.join(unknown)}",
            required=f"options among {', '.join(sorted(known))}",
            where="the arguments of bloomery.init",
            remedy="correct the name; `bloomery init --help` describes the options",
        )
    arguments: list[str] = []
    for name, value in options.items():
        parameter = parameters[name]
        if value is None:
            continue
        if isinstance(value, bool):
            arguments.append((parameter.opts if value else parameter.secondary_opts)[0])
            continue
        values = list(value) if isinstance(value, list | tuple) else [value]
        if not parameter.multiple:
            values = [",".join(map(str, values))]
        for item in values:
            arguments += [parameter.opts[0], str(item)]
    return arguments


def _conversion_of(unreadable: Sequence[Any]) -> str:
    is_lazy = bool(unreadable) and hasattr(unreadable[0], "collect")
    return "compute it with .collect()" if is_lazy else "convert it, such as with pandas.DataFrame(data)"


def _require_absent(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise StateUnwritable(
            f"{path} exists already",
            required="no file of that name",
            where=str(path.parent.absolute()),
            remedy="give another `name` or `output`, or replace it with force=True",
        )
