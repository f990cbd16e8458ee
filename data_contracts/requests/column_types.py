"""The columns of a contract as pydantic types: a type accepts exactly the values that keep the column's rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import date, datetime
from typing import Annotated, Any, NotRequired

import annotated_types
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
)
from pydantic_core import core_schema
from typing_extensions import TypedDict  # pydantic requires it below Python 3.12

from bloomery.data_contracts.odcs.base import LogicalType
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_type, max_exact_integer, value_range
from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.columns.date_formats import parse_format
from bloomery.data_contracts.odcs.columns.typed_elements import TypedElement
from bloomery.data_contracts.odcs.rules import Rule, integer_limits


def object_type(name: str, fields: dict[str, Any]) -> Any:
    """The type of a JSON object that has these fields and no other."""
    create: Any = TypedDict
    json_object = create(name, fields)
    json_object.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)
    return json_object


def column_type(column: Column, rules: Sequence[Rule]) -> Any:
    """The type of a column. Of `rules` those about this column apply."""
    column_rules = [rule for rule in rules if rule.target == column.name and not rule.is_of_items]
    if column.items is None:
        kind = _with_limits(_scalar_type(column, column_rules), column, column_rules)
    else:
        item_rules = [rule for rule in rules if rule.column == column.name and rule.is_of_items]
        items: Any = _with_limits(_scalar_type(column.items, item_rules), column.items, item_rules)
        kind = _with_limits(list[items] if column.items.required else list[items | None], column, column_rules)
    return kind if column.is_required else NotRequired[Annotated[kind | None, Field(default=None)]]


def _with_limits(kind: Any, item: TypedElement, rules: Sequence[Rule]) -> Any:
    """`kind` with the limits of `rules`. A pattern is one of Python's, and may match anywhere in the text."""
    for rule in rules:
        if rule.kind in ("length", "num_items"):
            limits = {"min_length": rule.low, "max_length": rule.high}
        elif rule.kind == "between" and item.logical_type != "integer":  # the type of an integer has its limits
            limits = {"gt" if rule.strict_low else "ge": rule.low, "lt" if rule.strict_high else "le": rule.high}
        else:
            limits = {}
        for name, limit in limits.items():
            if limit is not None:
                kind = Annotated[kind, _LIMITS[name](limit)]
        if rule.kind == "pattern":
            kind = Annotated[kind, AfterValidator(_require_match(rule.pattern or ""))]
        if rule.kind == "in_set":
            allowed = (
                _TextSet(rule.values) if item.logical_type == "string" else AfterValidator(_require_in(rule.values))
            )
            kind = Annotated[kind, allowed]
    return kind


_LIMITS: dict[str, Any] = {
    "ge": annotated_types.Ge,
    "le": annotated_types.Le,
    "gt": annotated_types.Gt,
    "lt": annotated_types.Lt,
    "min_length": annotated_types.MinLen,
    "max_length": annotated_types.MaxLen,
}


def _scalar_type(item: TypedElement, rules: Sequence[Rule]) -> Any:
    """The strict type of one value: text never becomes a number, and every value fits the column's type on disk."""
    match item.logical_type:
        case "integer":
            limits = tuple(rule for rule in rules if rule.kind == "between")
            lower, upper = integer_limits(limits, item.arrow_type)
            # 16.0 is a whole number, in JSON Schema as in a Parquet file of floats.
            integer = Annotated[StrictInt, Field(ge=lower, le=upper)]
            whole_float = Annotated[int, PlainValidator(_require_whole_float(lower, upper))]
            return Annotated[integer | whole_float, Field(union_mode="left_to_right")]
        case "number":
            low, high = value_range(arrow_type(item))
            check = _require_finite(low, high, max_exact_integer(arrow_type(item)))
            return Annotated[StrictFloat | StrictInt, AfterValidator(check)]
        case "boolean":
            return StrictBool
        case "date" | "timestamp":
            return Annotated[StrictStr, AfterValidator(moment_parser(item))]
    if any(rule.kind == "in_set" for rule in rules):  # the allowed texts are valid Unicode
        return StrictStr
    return Annotated[StrictStr, AfterValidator(_require_unicode)]


def moment_parser(item: TypedElement) -> Callable[[str], date]:
    """Returns what parses a text of a column of dates or times; it raises ValueError."""
    if item.date_format is not None:
        return _require_format(item.date_format, item.logical_type)
    return _parse_date if item.logical_type == "date" else _parse_timestamp


def _require_whole_float(lower: int, upper: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not isinstance(value, float) or not value.is_integer():
            raise ValueError("must be a whole number")
        if not lower <= value <= upper:
            raise ValueError(f"must be a whole number from {lower} to {upper}")
        return int(value)

    return check


def _require_finite(low: float, high: float, max_integer: int) -> Callable[[float], float]:
    def check(value: float) -> float:
        if isinstance(value, int) and abs(value) > max_integer:
            raise ValueError(f"must be from -{max_integer} to {max_integer} as a whole number: others would be rounded")
        if not low <= value <= high:  # false for NaN too
            raise ValueError(f"must be a finite number from {low:.3g} to {high:.3g}")
        return float(value)

    return check


def _require_unicode(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as failure:
        raise ValueError("must be valid Unicode text, without half a surrogate pair") from failure
    return value


def _require_format(pattern: str, logical_type: LogicalType) -> Callable[[str], date]:
    date_format = parse_format(pattern)
    parse: Callable[[str], date | None] = date_format.parse_date if logical_type == "date" else date_format.parse

    def check(value: str) -> date:
        moment = parse(value.strip())
        if moment is None:
            raise ValueError(f"must be a {'date' if logical_type == 'date' else 'time'} as {pattern}")
        return moment

    return check


def _parse_date(value: str) -> date:
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError("must be a date as YYYY-MM-DD")
    try:
        return date.fromisoformat(value)
    except ValueError as failure:
        raise ValueError(f"must be a date of the calendar: {failure}") from failure


def _parse_timestamp(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError as failure:
        raise ValueError("must be a time as 2024-02-29T12:00:00Z") from failure
    if moment.tzinfo is None:
        raise ValueError("must be a time with its offset, as 2024-02-29T12:00:00Z")
    return moment


def _require_match(pattern: str) -> Callable[[str], str]:
    regex = re.compile(pattern)

    def check(value: str) -> str:
        if regex.search(value) is None:
            raise ValueError(f"must match {pattern}")
        return value

    return check


def _require_in(allowed: tuple[Any, ...]) -> Callable[[Any], Any]:
    allowed_set = frozenset(allowed)

    def check(value: Any) -> Any:
        if (value.isoformat() if isinstance(value, date) else value) not in allowed_set:
            raise ValueError(_must_be_one_of(allowed))
        return value

    return check


class _TextSet:
    """As `_require_in`, for text and without a call of a Python function for each value, which dominates the time."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed = allowed

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        literal = core_schema.literal_schema(list(self._allowed))
        message = _must_be_one_of(self._allowed)
        one_of = core_schema.custom_error_schema(literal, custom_error_type="one_of", custom_error_message=message)
        return core_schema.chain_schema([handler(source), one_of])


def _must_be_one_of(allowed: tuple[Any, ...]) -> str:
    return f"must be one of {', '.join(map(str, allowed))}"
