"""Problems in the rows of a request: at most one for each cell, with row, column, value and rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic_core import ErrorDetails

_MAX_CHARACTERS = 80


class RowsRefused(Exception):
    """At least one row breaks the contract. The message describes the first of `problems` and counts the others."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        self.problems = problems
        first = problems[0]
        row = f"row {first['row']}" if first["row"] != "" else ""
        column = f"column {first['column']}" if first["column"] else ""
        place = ", ".join(filter(None, (row, column))) or "the request"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{place}: found {first['found']}, but {first['rule']}{more}")


class BodyUnreadable(Exception):
    """The body of a request does not have the format that its content type names."""


def row_problem(row: int | str, column: str, found: str, rule: str) -> dict[str, Any]:
    """A problem as the endpoint returns it. `row` and `column` are "" where the whole request or row is wrong."""
    return {"row": row, "column": column, "found": found, "rule": rule}


def explain_rows(details: list[ErrorDetails]) -> list[dict[str, Any]]:
    """The problems of a list of rows that pydantic refused."""
    return _one_per_place(details, _explain_row)


def explain_body(details: list[ErrorDetails]) -> list[dict[str, Any]]:
    """The problems of the body `{"rows": [...]}` that pydantic refused. A problem outside the rows has no row."""
    return _one_per_place(details, _explain_body)


def _one_per_place(
    details: list[ErrorDetails], explain: Callable[[ErrorDetails], dict[str, Any]]
) -> list[dict[str, Any]]:
    """One problem for each place. Of the members of a union, the one for floats explains a float."""
    problems: dict[tuple[Any, str], dict[str, Any]] = {}
    for detail in details:
        problem = explain(detail)
        place = (problem["row"], problem["column"])
        if place not in problems or isinstance(detail["input"], float):
            problems[place] = problem
    return list(problems.values())


def _explain_row(detail: ErrorDetails) -> dict[str, Any]:
    row, *path = detail["loc"] or ("",)
    steps = [f"[{part}]" if isinstance(part, int) else str(part) for part in path]
    # After the column's name pydantic adds the member of the union that it tried, which a client need not know.
    column = "".join(step for position, step in enumerate(steps) if position == 0 or step.startswith("["))
    message = detail["msg"].removeprefix("Value error, ")
    rule = {
        "missing": "the column is required",
        "extra_forbidden": "the contract has no such column",
        "finite_number": "must be a finite number",
    }.get(detail["type"], message[0].lower() + message[1:])
    return row_problem(row, column, "no value" if detail["type"] == "missing" else shorten(detail["input"]), rule)


def _explain_body(detail: ErrorDetails) -> dict[str, Any]:
    first, *path = detail["loc"] or ("",)
    if first == "rows" and path:
        return _explain_row({**detail, "loc": tuple(path)})
    return {**_explain_row({**detail, "loc": ("",)}), "column": "", "row": ""}


def shorten(value: Any) -> str:
    """The value as text of at most 80 characters; an array by its length."""
    text = f"an array of {len(value)} values" if isinstance(value, list) else repr(value)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..."
