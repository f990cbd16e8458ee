"""What no column can be: checks that do not fit its type, and rules that no value can keep together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.expressions.parser import referenced_columns
from bloomery.data_contracts.odcs.quality import Arguments, Dependency, LengthLimits, Quality, RowCondition, ValueLimits
from bloomery.data_contracts.odcs.rules import Bound, Rule, integer_limits

if TYPE_CHECKING:
    from bloomery.data_contracts.odcs.columns import Column, LogicalType, TypeOptions


def find_misuses(column: Column, check: Quality) -> Iterator[str]:
    """Why a quality check cannot be asked of a column."""
    logical_type, arguments, own = column.logical_type, check.arguments, check.implementation
    fitting = _FITTING.get(check.check_name)
    if check.metric == "rowCount" or isinstance(own, Dependency):
        yield f"a column's quality can be invalidValues; {check.check_name} belongs to the schema object"
    elif fitting is not None and logical_type not in fitting:
        yield f"{check.check_name} is for {', '.join(fitting)}, not for {logical_type}"
    elif isinstance(own, RowCondition):
        try:
            read = referenced_columns(own.expression)
        except ValueError as failure:
            yield str(failure)
            return
        if column.name not in read:
            yield f"the expression of column {column.name} does not read it; state it at the schema object"
    elif isinstance(own, ValueLimits):
        try:
            require_exact_bounds(own)
        except ValueError as failure:
            yield str(failure)
        limits = own.limits()
        low, high = limits["low"], limits["high"]
        if low is None and high is None:
            yield "between needs minimum, maximum, exclusiveMinimum or exclusiveMaximum"
        elif low is not None and high is not None and low > high:
            yield f"no value can be at least {low} and at most {high}"
    elif isinstance(own, LengthLimits):
        if own.min_length is None and own.max_length is None:
            yield "length needs minLength or maxLength"
        elif own.max_length is not None and (own.min_length or 0) > own.max_length:
            yield f"no value can be at least {own.min_length} and at most {own.max_length}"
    elif arguments is not None:
        yield from _misused_arguments(column, arguments)


_SINGLE: tuple[LogicalType, ...] = ("integer", "number", "string", "boolean", "date")
_FITTING: dict[str, tuple[LogicalType, ...]] = {
    "invalidValues": _SINGLE,
    "missingValues": _SINGLE,
    "duplicateValues": (*_SINGLE, "timestamp"),
    "between": ("integer", "number"),
    "length": ("string",),
    "distribution": ("integer", "number", "string", "boolean"),
}


def _misused_arguments(column: Column, arguments: Arguments) -> Iterator[str]:
    if arguments.properties is not None:
        yield "arguments.properties names columns that are unique together; it belongs to the schema object"
    if arguments.pattern is not None:
        if column.logical_type != "string":
            yield f"pattern has no meaning for {column.logical_type}"
        try:
            require_regular_expression(arguments.pattern)
        except ValueError as failure:
            yield str(failure)
    for value in arguments.valid_values or ():
        if not _is_of(value, column.logical_type):
            yield f"{value!r} is no valid value of type {column.logical_type}"
    for value in arguments.missing_values or ():
        if value is not None and not _is_of(value, column.logical_type):
            yield f"{value!r} can be no value of type {column.logical_type}, so it need not be named as missing"


def _is_of(value: Any, logical_type: LogicalType) -> bool:
    """Whether a value of a contract file is of a column's type. YAML reads `no` as false and `1.0` as a real number."""
    match logical_type:
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        case "boolean":
            return isinstance(value, bool)
        case "date":
            if not isinstance(value, str) or re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) is None:
                return False
            try:
                date.fromisoformat(value)
            except ValueError:
                return False
            return True
    return isinstance(value, str)


def find_contradictions(column: Column, rules: tuple[Rule, ...]) -> Iterator[str]:
    """Why no value of the column can keep all of its rules."""
    own = tuple(rule for rule in rules if rule.target == column.name)
    sets = [rule.values for rule in own if rule.kind == "in_set"]
    others = [frozenset(values) for values in sets[1:]]
    least, most = integer_limits((), column.arrow_type)
    is_whole = column.logical_type == "integer"
    if sets and not any(
        all(value in other for other in others)
        and (not is_whole or least <= value <= most)
        and all(_keeps(rule, value) for rule in own)
        for value in sets[0]
    ):
        yield f"no valid value keeps the other rules: {'; '.join(rule.sentence for rule in own)}"
    for kind in ("between", "length"):
        limits = [rule for rule in own if rule.kind == kind]
        low: tuple[Bound | None, bool] = (None, False)
        high: tuple[Bound | None, bool] = (None, False)
        for rule in limits:
            low = _narrower(low, (rule.low, rule.strict_low), largest=True)
            high = _narrower(high, (rule.high, rule.strict_high), largest=False)
        fewest, greatest = low[0], high[0]
        if is_whole and kind == "between":
            fewest, greatest = integer_limits(tuple(limits), column.arrow_type)
        is_empty = (
            fewest is not None
            and greatest is not None
            and (fewest > greatest or (fewest == greatest and not is_whole and (low[1] or high[1])))
        )
        if is_empty:
            yield f"no value can keep all of: {'; '.join(rule.sentence for rule in limits)}"


def _narrower(
    one: tuple[Bound | None, bool], other: tuple[Bound | None, bool], *, largest: bool
) -> tuple[Bound | None, bool]:
    if one[0] is None or other[0] is None:
        return other if one[0] is None else one
    if one[0] == other[0]:
        return one[0], one[1] or other[1]
    return one if (one[0] > other[0]) == largest else other


def _keeps(rule: Rule, value: Any) -> bool:
    match rule.kind:
        case "pattern":
            return re.search(rule.pattern or "", value) is not None
        case "between" | "length":
            size = len(value) if rule.kind == "length" else value
            above = rule.low is None or size > rule.low or (size == rule.low and not rule.strict_low)
            return above and (rule.high is None or size < rule.high or (size == rule.high and not rule.strict_high))
    return True


def require_regular_expression(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as failure:
        raise ValueError(f"pattern {pattern!r} is no regular expression: {failure}") from failure


def require_exact_bounds(limits: TypeOptions | ValueLimits) -> None:
    bounds = (limits.minimum, limits.maximum, limits.exclusive_minimum, limits.exclusive_maximum)
    if any(bound is not None and abs(bound) >= 2**53 for bound in bounds):
        raise ValueError("a limit of 2**53 or more cannot be compared to the last digit; use a smaller one")
