"""A contract as the check of the rows that a client sends.

Only the columns that the model reads are asked for; a key or a label in a request is an extra column and refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

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
from data_contracts.schemas import arrow_schema

_STRICT: dict[str, Any] = {
    "integer": StrictInt,
    "number": StrictFloat | StrictInt,
    "string": StrictStr,
    "boolean": StrictBool,
    "date": Annotated[StrictStr, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")],
    "timestamp": StrictStr,
}
_INTEGER_WIDTH = re.compile(r"(u?)int(\d+)")


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
    options = item.logical_type_options
    items = getattr(item, "items", None)
    kind: Any = list[_type_of(items)] if items is not None else _STRICT[item.logical_type]  # type: ignore[misc]
    low, high = _width_of(item)
    limits: dict[str, Any] = {
        "ge": _largest(options.minimum, low),
        "le": _smallest(options.maximum, high),
        "gt": options.exclusive_minimum,
        "lt": options.exclusive_maximum,
        "min_length": options.min_items if items is not None else options.min_length,
        "max_length": options.max_items if items is not None else options.max_length,
        "pattern": options.pattern,
    }
    kind = Annotated[kind, Field(**{name: limit for name, limit in limits.items() if limit is not None})]
    allowed = _allowed(item)
    if allowed is not None:
        kind = Annotated[kind, AfterValidator(_among(allowed))]
    is_optional = isinstance(item, Column) and not (item.required or item.primary_key)
    return kind | None if is_optional else kind


def _width_of(item: Item) -> tuple[int | None, int | None]:
    """The range of the integer type that the column has on disk."""
    width = _INTEGER_WIDTH.fullmatch(item.arrow_type)
    if width is None:
        return None, None
    bits = int(width[2])
    return (0, 2**bits - 1) if width[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _largest(*bounds: float | None) -> float | None:
    return max((bound for bound in bounds if bound is not None), default=None)


def _smallest(*bounds: float | None) -> float | None:
    return min((bound for bound in bounds if bound is not None), default=None)


def _allowed(item: Item) -> tuple[Any, ...] | None:
    checks = item.quality if isinstance(item, Column) else ()
    return next((check.arguments.valid_values for check in checks if check.arguments is not None), None)


def _among(allowed: tuple[Any, ...]) -> Any:
    def check(value: Any) -> Any:
        if value not in allowed:
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
