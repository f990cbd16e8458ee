"""A contract as the check of the rows that a client sends.

Only the columns that the model reads are asked for; a key or a label in a request is an extra column and refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Annotated, Any, NamedTuple, NotRequired

import annotated_types
import numpy as np
import pyarrow as pa
from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    PlainValidator,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails, core_schema
from typing_extensions import TypedDict  # pydantic asks for it below Python 3.12

from bloomery.data_contracts.expressions.parser import Condition, find_violations, parse_condition
from bloomery.data_contracts.expressions.row_evaluator import FallBackToArrow, RowFunction, compile_for_row
from bloomery.data_contracts.odcs.arrow_schema import arrow_schema, arrow_type, max_exact_integer, value_range
from bloomery.data_contracts.odcs.columns import Column, TypedElement
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule, integer_limits
from bloomery.data_contracts.requests.columnar_rows import ColumnarRows, ColumnKinds, Row
from bloomery.data_contracts.requests.json_schema import row_json_schema


class RowsRefused(Exception):
    """At least one row breaks the contract. `problems` names row, column, value and rule of each, worst first."""

    def __init__(self, problems: list[dict[str, Any]]) -> None:
        self.problems = problems
        first = problems[0]
        places = (
            f"row {first['row']}" if first["row"] != "" else "",
            f"column {first['column']}" if first["column"] else "",
        )
        place = ", ".join(filter(None, places)) or "the request"
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        super().__init__(f"{place}: found {first['found']}, but {first['rule']}{more}")


class BodyUnreadable(Exception):
    """The body of a request is not what its content type says."""


_ROWS_ASKED_ALONE = 64  # beyond which Arrow asks a condition of all at once sooner


class JsonRowParser:
    """Turns the rows of a request into a table, or says what is wrong with them."""

    def __init__(self, contract: Contract, columns: Sequence[str]) -> None:
        asked = [column for column in contract.columns if column.name in columns]
        rules = [rule for rule in contract.rules() if rule.is_about_rows and rule.severity == "error"]
        row = _document("Row", {column.name: _column_type(column, rules) for column in asked})
        rows = Annotated[list[row], Field(min_length=1)]  # type: ignore[valid-type]
        self._list: TypeAdapter[list[dict[str, Any]]] = TypeAdapter(rows)
        self._body: TypeAdapter[dict[str, list[dict[str, Any]]]] = TypeAdapter(_document("Body", {"rows": rows}))
        self._asked, self._rules, self._title = asked, rules, contract.name
        self._columns = [column.name for column in asked]
        whole = arrow_schema(contract.columns)
        self.schema = pa.schema([whole.field(name) for name in self._columns])
        self._kinds = ColumnKinds(self.schema)
        # A condition that reads another column cannot be asked: the model does not read that column.
        self._conditions = [
            _Asked(rule, condition, compile_for_row(condition.root, whole))
            for rule in rules
            if rule.kind == "expression" and set(rule.columns) <= set(self._columns)
            for condition in (parse_condition(rule.expression or "", whole),)
        ]

    def parse_table(self, rows: Any) -> pa.Table:
        """The rows as a table in the contract's types, in the order in which they came.

        Raises:
            RowsRefused: a column is missing, unknown or of the wrong type, or a value breaks a rule.
        """
        try:
            checked = self._list.validate_python(rows)
        except ValidationError as failure:
            raise RowsRefused(_problems(failure.errors(include_url=False))) from None
        self._require_conditions(checked)
        return pa.Table.from_batches([self.to_columns(checked).batch])

    def parse_json(self, body: bytes) -> list[Row]:
        """The rows of a request, `{"rows": [{...}, ...]}` in JSON.

        Raises:
            BodyUnreadable: it is no JSON.
            RowsRefused: as `table` says, or it is something else than an object with rows.
        """
        try:
            checked = self._body.validate_json(body)
        except ValidationError as failure:
            details = failure.errors(include_url=False)
            if details[0]["type"] == "json_invalid":
                raise BodyUnreadable(details[0]["msg"].removeprefix("Invalid JSON: ")) from None
            raise RowsRefused(_problems(details, _problem_of_body)) from None
        rows = checked["rows"]
        self._require_conditions(rows)
        return rows

    def to_columns(self, rows: Sequence[Row]) -> ColumnarRows:
        """Rows that were checked, by column."""
        return ColumnarRows.from_rows(rows, self._kinds)

    def _require_conditions(self, rows: list[Row]) -> None:
        """Raises RowsRefused where a condition is false."""
        batch = self.to_columns(rows).batch if self._conditions and len(rows) > _ROWS_ASKED_ALONE else None
        problems = [problem for asked in self._conditions for problem in self._unkept(asked, rows, batch)]
        if problems:
            raise RowsRefused(sorted(problems, key=lambda problem: problem["row"]))

    def _unkept(self, asked: _Asked, rows: list[Row], batch: pa.RecordBatch | None) -> list[dict[str, Any]]:
        """Row, columns, values and rule for each row where the condition is false. Without a batch each is asked."""
        if batch is not None:
            places = _false_in(asked.condition, batch)
        else:
            try:
                places = [place for place, row in enumerate(rows) if asked.value(row) is False]
            except FallBackToArrow:
                places = _false_in(asked.condition, self.to_columns(rows).batch)
        names, found = asked.condition.columns, []
        for place in places:
            values = ", ".join(f"{name} = {_cell(rows[place][name])}" for name in names)
            found.append({"row": place, "column": ", ".join(names), "found": values, "rule": asked.rule.sentence})
        return found

    def json_schema(self) -> dict[str, Any]:
        """The JSON Schema of one row, for the endpoint's own documentation."""
        conditions = [asked.rule for asked in self._conditions]
        others = [rule for rule in self._rules if rule.kind != "expression"]
        return row_json_schema(self._asked, [*others, *conditions], self._title)


class _Asked(NamedTuple):
    """A rule with its condition, as it is asked of a batch and of one row."""

    rule: Rule
    condition: Condition
    value: RowFunction


def _false_in(condition: Condition, rows: pa.RecordBatch) -> list[int]:
    return np.flatnonzero(find_violations(condition, rows).to_numpy(zero_copy_only=False)).tolist()


def _cell(value: Any) -> str:
    """A value of the table as a client would write it."""
    return value.isoformat() if isinstance(value, date) else _shown(value)


def _document(name: str, fields: dict[str, Any]) -> Any:
    """The type of a JSON object that has these fields and no other."""
    make: Any = TypedDict
    made = make(name, fields)
    made.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return made


def _column_type(column: Column, rules: Sequence[Rule]) -> Any:
    """A pydantic type that takes exactly the values of a column for which every one of its `rules` holds."""
    own = [rule for rule in rules if rule.target == column.name]
    if column.items is None:
        kind = _limited(_scalar(column, own), column, own)
    else:
        inner = [rule for rule in rules if rule.target == f"{column.name}[]"]
        items: Any = _limited(_scalar(column.items, inner), column.items, inner)
        kind = _limited(list[items] if column.items.required else list[items | None], column, own)
    return kind if column.is_required else NotRequired[Annotated[kind | None, Field(default=None)]]


def _limited(kind: Any, item: TypedElement, rules: Sequence[Rule]) -> Any:
    """`kind` with the limits of `rules`. Patterns are Python's, and searched for."""
    for rule in rules:
        if rule.kind in ("length", "num_items"):
            limits = {"min_length": rule.low, "max_length": rule.high}
        elif rule.kind == "between" and item.logical_type != "integer":  # a whole number's limits are in its type
            limits = {"gt" if rule.strict_low else "ge": rule.low, "lt" if rule.strict_high else "le": rule.high}
        else:
            limits = {}
        for name, limit in limits.items():
            if limit is not None:
                kind = Annotated[kind, _LIMITS[name](limit)]
        if rule.kind == "pattern":
            kind = Annotated[kind, AfterValidator(_matching(rule.pattern or ""))]
        if rule.kind == "in_set":
            one_of = _OneOf(rule.values) if item.logical_type == "string" else AfterValidator(_among(rule.values))
            kind = Annotated[kind, one_of]
    return kind


_LIMITS: dict[str, Any] = {
    "ge": annotated_types.Ge,
    "le": annotated_types.Le,
    "gt": annotated_types.Gt,
    "lt": annotated_types.Lt,
    "min_length": annotated_types.MinLen,
    "max_length": annotated_types.MaxLen,
}


def _scalar(item: TypedElement, rules: Sequence[Rule]) -> Any:
    """The strict type of one value: nothing is turned into a number, and every value fits its column on disk."""
    match item.logical_type:
        case "integer":
            limits = tuple(rule for rule in rules if rule.kind == "between")
            least, most = integer_limits(limits, item.arrow_type)
            # 16.0 is a whole number, in JSON Schema as in a Parquet file of real numbers.
            kinds = Annotated[StrictInt, Field(ge=least, le=most)] | Annotated[int, PlainValidator(_whole(least, most))]
            return Annotated[kinds, Field(union_mode="left_to_right")]
        case "number":
            low, high = value_range(arrow_type(item))
            return Annotated[
                StrictFloat | StrictInt, AfterValidator(_finite(low, high, max_exact_integer(arrow_type(item))))
            ]
        case "boolean":
            return StrictBool
        case "date":
            return Annotated[StrictStr, AfterValidator(_date)]
        case "timestamp":
            return Annotated[StrictStr, AfterValidator(_timestamp)]
    if any(rule.kind == "in_set" for rule in rules):  # whose texts are in Unicode
        return StrictStr
    return Annotated[StrictStr, AfterValidator(_text)]


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, float) or not value.is_integer():
            raise ValueError("must be a whole number")
        if not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(value)

    return check


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
    known = frozenset(allowed)

    def check(value: Any) -> Any:
        if (value.isoformat() if isinstance(value, date) else value) not in known:
            raise ValueError(_must_be_one_of(allowed))
        return value

    return check


class _OneOf:
    """The same for text, without a call of Python's for each value, which takes longer than all else."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        known = core_schema.literal_schema(list(self._allowed))
        told = _must_be_one_of(self._allowed)
        among = core_schema.custom_error_schema(known, custom_error_type="one_of", custom_error_message=told)
        return core_schema.chain_schema([handler(source), among])


def _must_be_one_of(allowed: tuple[Any, ...]) -> str:
    return f"must be one of {', '.join(map(str, allowed))}"


def _problems(
    details: list[ErrorDetails], told: Callable[[ErrorDetails], dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """One for each place. Where several types were tried, that of real numbers is told of a real number."""
    found: dict[tuple[Any, str], dict[str, Any]] = {}
    for detail in details:
        problem = (told or _problem)(detail)
        place = (problem["row"], problem["column"])
        if place not in found or isinstance(detail["input"], float):
            found[place] = problem
    return list(found.values())


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
    found = "no value" if detail["type"] == "missing" else _shown(detail["input"])
    return {"row": row, "column": column, "found": found, "rule": rule}


def _problem_of_body(detail: ErrorDetails) -> dict[str, Any]:
    """The same of a whole body: what is wrong around the rows has no row."""
    first, *inside = detail["loc"] or ("",)
    if first == "rows" and inside:
        return _problem({**detail, "loc": tuple(inside)})
    return {**_problem({**detail, "loc": ("",)}), "column": "", "row": ""}


def _shown(value: Any) -> str:
    text = f"an array of {len(value)} values" if isinstance(value, list) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
