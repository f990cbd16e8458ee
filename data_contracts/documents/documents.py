"""Reading YAML files into frozen models, with errors that name the file and the line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from bloomery.data_contracts.errors import DataMissing, DocumentInvalid

Location = tuple[str | int, ...]


def is_unset(value: object) -> bool:
    """Whether an option is null; `exclude_if=is_unset` does not write it, so that stages without it keep their keys."""
    return value is None


def is_empty(value: Sized) -> bool:
    """Whether an option has no elements; `exclude_if=is_empty` does not write it, so that stages keep their keys."""
    return not value


class Document(BaseModel):
    """A frozen section of a recipe, a contract or a record. An unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def identity(self) -> Any:
        """The content that determines the output of a stage with this argument, as JSON values: by default all."""
        return self.model_dump(mode="json", by_alias=True)


class NotPartOfKey(Document):
    """Marks an argument that does not change a stage's output, such as the engine that computes it.

    The key of the stage's output leaves it out.
    """


DocumentT = TypeVar("DocumentT", bound=Document)


class _Loader(yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):  # type: ignore[misc]  # either of two
    """Reads plain values. Where libyaml is installed it is ten times as fast."""


class TimesAsText(_Loader):
    """Reads dates and times as the text that the file has."""


TimesAsText.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def read_document(
    path: Path, model: type[DocumentT], error: type[DocumentInvalid], loader: type[_Loader] = _Loader
) -> DocumentT:
    """Reads the YAML file at `path` as a `model`.

    Raises:
        DataMissing: the file does not exist or cannot be read.
        DocumentInvalid (as `error`): the file is not YAML, or does not fit `model`. The message has a line for each
            problem, with the file's line number.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise DataMissing(
            f"{path} cannot be read: {failure}",
            required=f"a YAML file in UTF-8 that describes a {model.__name__.lower()}",
            where=str(path),
            remedy="check the name, or give a path to the file",
        ) from failure
    try:
        root = yaml.compose(text, Loader=loader)
        lines: dict[Location, int] = dict(_lines(root)) if root is not None else {}
        document = yaml.load(text, Loader=loader)  # a safe loader
    except yaml.YAMLError as failure:
        problem, line = describe_yaml_error(failure)
        raise error(
            f"{path.name} is not YAML: {problem}",
            required="one YAML mapping",
            where=f"{path}:{line or 1}",
            remedy="correct the syntax on that line; indent with spaces",
        ) from failure
    except (_InvalidKey, RecursionError) as failure:
        problem, line = (str(failure), failure.line) if isinstance(failure, _InvalidKey) else ("an alias to itself", 1)
        raise error(
            f"{path.name} has {problem}",
            required="each key once and as plain text, and no alias inside its own anchor",
            where=f"{path}:{line}",
            remedy="delete or rename it",
        ) from failure
    try:
        return model.model_validate(document)
    except ValidationError as failure:
        raise _explain(failure, path, lines, model, error) from failure


def describe_yaml_error(failure: yaml.YAMLError) -> tuple[str, int | None]:
    """Returns the problem that the parser has found, and the number of its line; None if the parser names none."""
    mark = getattr(failure, "problem_mark", None)
    return str(getattr(failure, "problem", None) or failure), mark.line + 1 if mark else None


class _InvalidKey(Exception):
    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


def _lines(node: yaml.Node, at: Location = ()) -> Iterator[tuple[Location, int]]:
    """The line of each value of a YAML tree, counted from 1."""
    yield at, node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _InvalidKey("a key that is not plain text", key.start_mark.line + 1)
            if key.value in keys:
                raise _InvalidKey(f"the key {key.value!r} twice", key.start_mark.line + 1)
            keys.add(key.value)
            yield from _lines(value, (*at, key.value))
            yield (*at, key.value), key.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            yield from _lines(value, (*at, position))


def _explain(
    failure: ValidationError,
    path: Path,
    lines: dict[Location, int],
    model: type[Document],
    error: type[DocumentInvalid],
) -> DocumentInvalid:
    errors = failure.errors()
    # Where an element of a list is invalid, pydantic also reports that the list is too short.
    inner = {problem["loc"][:depth] for problem in errors for depth in range(len(problem["loc"]))}
    problems = [
        (_line_of(problem["loc"], lines), _sentence(problem, _known_keys(model, problem["loc"])))
        for problem in errors
        if not (problem["type"] == "too_short" and problem["loc"] in inner)
    ]
    problems.sort()
    message = "\n".join(f"{path.name}:{line}: {sentence}" for line, sentence in problems)
    return error(
        message,
        required=f"a {model.__name__.lower()} with known keys and values of the right kind",
        where=f"{path}:{problems[0][0]}",
        remedy="correct the lines above and run `bloomery check` again",
    )


def _line_of(location: Location, lines: dict[Location, int]) -> int:
    """The line of the innermost key of `location` that the file has.

    Pydantic adds the names of union members to a location; keys that the file does not have are skipped.
    """
    at: Location = ()
    for part in location:
        if (*at, part) in lines:
            at = (*at, part)
    return lines.get(at, 1)


def _sentence(problem: Any, known_keys: list[str]) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "the document"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1]), known_keys, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(sorted(known_keys))}"
        return f"{where}: unknown key{hint if known_keys else ''}"
    if problem["type"] == "missing":
        return f"{where}: missing"
    rule = problem["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    if problem["type"] == "string_type" and isinstance(problem["input"], int | float):
        rule += "; put it into quotes"
    if isinstance(problem["input"], dict | list | tuple | BaseModel):
        return f"{where}: {rule}"  # a mapping or a list is too long to repeat
    return f"{where}: found {problem['input']!r}, but {rule[0].lower()}{rule[1:]}"


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """The keys that the model at the parent of `location` knows."""
    candidates: list[type[BaseModel]] = [model]
    for part in location[:-1]:
        if not isinstance(part, str):
            continue
        inner = [member for owner in candidates for member in _models_in(_field(owner, part))]
        candidates = inner or candidates
    return [field.alias or name for owner in candidates for name, field in owner.model_fields.items()]


def _field(model: type[BaseModel], key: str) -> Any:
    for name, field in model.model_fields.items():
        if key in (name, field.alias):
            return field.annotation
    return None


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)
