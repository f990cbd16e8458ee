"""A contract as the check of the rows that a client sends.

Only the columns that the model reads are asked for; a key or a label in a request is an extra column and refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Annotated, Any

import annotated_types
import pyarrow as pa
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic_core import ErrorDetails

from data_contracts.contract import Column, Contract, Item
from data_contracts.schemas import arrow_schema, arrow_type, largest_exact, range_of


class RowsRefused(Exception):
    """At least one row breaks the contract. `problems` names row, column, value and rule of each, worst first."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        self.problems = problems
        first = problems[0]
        place = f"row {first['row']}, column {first['column']}" if first["column"] else "the request"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{place}: found {first['found']}, but {first['rule']}{more}")


class RowCheck:
    """Turns the rows of a request into a table, or says what is wrong with them."""

    def __init__(self, contract: Contract, columns: Sequence[str]) -> None:
        asked = [column for column in contract.columns if column.name in columns]
        # Fields are numbered, since a column may have a name that pydantic reserves.
        fields: dict[str, Any] = {
            f"column_{position}": (_type_of(column), Field(_default_of(column), alias=column.name))
            for position, column in enumerate(asked)
        }
        row: type[BaseModel] = create_model(
            "Row", __config__=ConfigDict(extra="forbid", allow_inf_nan=False, title=contract.name), **fields
        )
        rows: Any = Annotated[list[row], Field(min_length=1)]  # type: ignore[valid-type]
        self._rows: TypeAdapter[list[Any]] = TypeAdapter(rows)
        self._columns = [column.name for column in asked]
        whole = arrow_schema(contract)
        self.schema = pa.schema([whole.field(name) for name in self._columns])

    def table(self, rows: Any) -> pa.Table:
        """The rows as a table in the contract's types, in the order in which they came.

        Raises:
            RowsRefused: a column is missing, unknown or of the wrong type, or a value breaks a rule.
        """
        try:
            checked = self._rows.validate_python(rows)
        except ValidationError as failure:
            raise RowsRefused([_problem(detail) for detail in failure.errors(include_url=False)]) from None
        cells = {
            name: [getattr(row, f"column_{position}") for row in checked] for position, name in enumerate(self._columns)
        }
        return pa.table(cells, schema=self.schema)

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of the list of rows, for the endpoint's own documentation."""
        return self._rows.json_schema()


def _default_of(column: Column) -> Any:
    return ... if column.required or column.primary_key else None


def _type_of(item: Item) -> Any:
    """A pydantic type that takes exactly the values for which every rule of `expectations.judge` holds.

    Where a rule is in doubt it is read as pandas reads it there: patterns are Python's, and searched for.
    """
    items = getattr(item, "items", None)
    kind: Any = list[_type_of(items)] if items is not None else _scalar(item)  # type: ignore[misc]
    options = item.logical_type_options
    is_whole = item.logical_type == "integer"  # its limits are in the scalar, without fractions
    limits = {
        "ge": options.minimum,
        "le": options.maximum,
        "gt": options.exclusive_minimum,
        "lt": options.exclusive_maximum,
        "min_length": options.min_items if items is not None else options.min_length,
        "max_length": options.max_items if items is not None else options.max_length,
    }
    for name, limit in limits.items():
        if limit is not None and not (is_whole and name in ("ge", "le", "gt", "lt")):
            kind = Annotated[kind, _LIMITS[name](limit)]
    if options.pattern is not None:
        kind = Annotated[kind, AfterValidator(_matching(options.pattern))]
    for check in item.quality if isinstance(item, Column) else ():
        if check.arguments is not None:
            kind = Annotated[kind, AfterValidator(_among(check.arguments.valid_values))]
    is_optional = isinstance(item, Column) and not (item.required or item.primary_key)
    return kind | None if is_optional else kind


_LIMITS: dict[str, Any] = {
    "ge": annotated_types.Ge,
    "le": annotated_types.Le,
    "gt": annotated_types.Gt,
    "lt": annotated_types.Lt,
    "min_length": annotated_types.MinLen,
    "max_length": annotated_types.MaxLen,
}


def _scalar(item: Item) -> Any:
    """The strict type of one value: nothing is turned into a number, and every value fits its column on disk."""
    match item.logical_type:
        case "integer":
            least, most = item.value_range()
            return Annotated[StrictInt, Field(ge=least, le=most)]
        case "number":
            low, high = range_of(arrow_type(item))
            return Annotated[
                StrictFloat | StrictInt, AfterValidator(_finite(low, high, largest_exact(arrow_type(item))))
            ]
        case "boolean":
            return StrictBool
        case "date":
            return Annotated[StrictStr, AfterValidator(_date)]
        case "timestamp":
            return Annotated[StrictStr, AfterValidator(_timestamp)]
    return Annotated[StrictStr, AfterValidator(_text)]


def _finite(low: float, high: float, largest_whole: int) -> Callable[[float], float]:
    def check(value: float) -> float:
        if isinstance(value, int) and abs(value) > largest_whole:
            raise ValueError(f"must be a number that keeps its digits: at most {largest_whole} as a whole number")
        if not low <= value <= high:  # false for NaN too
            raise ValueError(f"must be a finite number from {low:.3g} to {high:.3g}")
        return float(value)

    return check


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as failure:
        raise ValueError("must be text in Unicode, and half a surrogate pair is none") from failure
    return value


def _date(value: str) -> date:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError("must be a date as YYYY-MM-DD")
    try:
        return date.fromisoformat(value)
    except ValueError as failure:
        raise ValueError(f"must be a date of the calendar: {failure}") from failure


def _timestamp(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as failure:
        raise ValueError("must be a time as 2024-02-29T12:00:00Z") from failure
    if moment.tzinfo is None:
        raise ValueError("must be a time with its offset, as 2024-02-29T12:00:00Z")
    return moment


def _matching(pattern: str) -> Callable[[str], str]:
    searched = re.compile(pattern)

    def check(value: str) -> str:
        if searched.search(value) is None:
            raise ValueError(f"must match {pattern}")
        return value

    return check


def _among(allowed: tuple[Any, ...]) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if (value.isoformat() if isinstance(value, date) else value) not in allowed:
            raise ValueError(f"must be one of {', '.join(map(str, allowed))}")
        return value

    return check


def _problem(detail: ErrorDetails) -> dict[str, Any]:
    """Row, column, value and rule of one of pydantic's error details."""
    row, *inside = detail["loc"] or ("",)
    places = [f"[{part}]" if isinstance(part, int) else str(part) for part in inside]
    # Behind the column's name pydantic tells which member of a union it tried; a client need not know.
    column = "".join(place for position, place in enumerate(places) if position == 0 or place.startswith("["))
    rule = detail["msg"].removeprefix("Value error, ")
    rule = {
        "missing": "the column is required",
        "extra_forbidden": "the contract has no such column",
        "finite_number": "must be a finite number",
    }.get(detail["type"], rule[0].lower() + rule[1:])
    found = "nothing" if detail["type"] == "missing" else _shown(detail["input"])
    return {"row": row, "column": column, "found": found, "rule": rule}


def _shown(value: Any) -> str:
    text = f"an array of {len(value)} values" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
