"""Consistency of one column: quality checks that do not fit its type, and rules that no value can satisfy together."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import date
from typing import Any

from bloomery.data_contracts.expressions.parser import referenced_columns
from bloomery.data_contracts.odcs.base import LogicalType
from bloomery.data_contracts.odcs.elements.quality import (
    Arguments,
    Dependency,
    LengthLimits,
    Quality,
    RowCondition,
    ValueLimits,
)
from bloomery.data_contracts.odcs.elements.type_options import has_exact_bounds
from bloomery.data_contracts.odcs.rules import Bound, Rule, integer_limits

INEXACT = "a limit of 2**53 or more cannot be compared exactly; use a smaller one"


def find_misuses(name: str, logical_type: LogicalType, check: Quality) -> Iterator[str]:
    """Why the quality check, which has no limitation of its own, does not apply to the column `name` of that type."""
    implementation = check.implementation
    supported = _SUPPORTED_TYPES.get(check.check_name)
    if check.metric == "rowCount" or isinstance(implementation, Dependency):
        yield f"{check.check_name} belongs to the schema object, not to a column"
    elif supported is not None and logical_type not in supported:
        yield f"{check.check_name} is for {', '.join(supported)}, not for {logical_type}"
    elif isinstance(implementation, RowCondition):
        yield from _condition_misuses(name, implementation)
    elif isinstance(implementation, ValueLimits):
        yield from _limit_misuses(implementation)
    elif isinstance(implementation, LengthLimits):
        if implementation.min_length is None and implementation.max_length is None:
            yield "length needs minLength or maxLength"
        elif implementation.max_length is not None and (implementation.min_length or 0) > implementation.max_length:
            yield f"no value can be at least {implementation.min_length} and at most {implementation.max_length}"
    elif check.arguments is not None:
        yield from _argument_misuses(logical_type, check.arguments)


_SCALARS: tuple[LogicalType, ...] = ("integer", "number", "string", "boolean", "date")
_SUPPORTED_TYPES: dict[str, tuple[LogicalType, ...]] = {
    "invalidValues": _SCALARS,
    "missingValues": _SCALARS,
    "duplicateValues": (*_SCALARS, "timestamp"),
    "between": ("integer", "number"),
    "length": ("string",),
    "distribution": ("integer", "number", "string", "boolean"),
}


def _condition_misuses(name: str, condition: RowCondition) -> Iterator[str]:
    try:
        columns = referenced_columns(condition.expression)
    except ValueError as failure:
        yield str(failure)
        return
    if name not in columns:
        yield f"the expression of column {name} does not read the column; move it to the schema object"


def _limit_misuses(limits: ValueLimits) -> Iterator[str]:
    if not has_exact_bounds(limits.minimum, limits.maximum, limits.exclusive_minimum, limits.exclusive_maximum):
        yield INEXACT
    fields = limits.limits()
    low, high = fields["low"], fields["high"]
    if low is None and high is None:
        yield "between needs minimum, maximum, exclusiveMinimum or exclusiveMaximum"
    elif low is not None and high is not None and low > high:
        yield f"no value can be at least {low} and at most {high}"


def _argument_misuses(logical_type: LogicalType, arguments: Arguments) -> Iterator[str]:
    if arguments.properties is not None:
        yield "arguments.properties names columns that are unique together; it belongs to the schema object"
    if arguments.pattern is not None:
        if logical_type != "string":
            yield f"pattern has no meaning for {logical_type}"
        try:
            require_regular_expression(arguments.pattern)
        except ValueError as failure:
            yield str(failure)
    if arguments.valid_values is not None and all(value is None for value in arguments.valid_values):
        yield "validValues has no value but null, which is neither valid nor invalid"
    for value in arguments.valid_values or ():
        if value is not None and not _has_type(value, logical_type):
            yield f"{value!r} is not a value of type {logical_type}"
    for value in arguments.missing_values or ():
        if value is not None and not _has_type(value, logical_type):
            yield f"{value!r} cannot be a value of type {logical_type}; remove it from missingValues"


def _has_type(value: Any, logical_type: LogicalType) -> bool:
    """True if a value in a contract has the logical type. In YAML 1.1 `no` is a boolean, and `1.0` a float."""
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


def find_contradictions(
    name: str, logical_type: LogicalType, arrow_type: str, rules: tuple[Rule, ...]
) -> Iterator[str]:
    """Why no value of the column `name` can satisfy all of its `rules`."""
    column_rules = tuple(rule for rule in rules if rule.target == name)
    is_integer = logical_type == "integer"
    if not _some_value_is_valid(column_rules, is_integer, arrow_type):
        yield f"no valid value satisfies the other rules: {'; '.join(rule.sentence for rule in column_rules)}"
    for kind in ("between", "length"):
        limits = tuple(rule for rule in column_rules if rule.kind == kind)
        if _are_disjoint(limits, is_integer and kind == "between", arrow_type):
            yield f"no value can satisfy all of: {'; '.join(rule.sentence for rule in limits)}"


def _some_value_is_valid(rules: tuple[Rule, ...], is_integer: bool, arrow_type: str) -> bool:
    """Whether a value of the first set of valid values satisfies all rules; true where no rule states a set."""
    sets = [rule.values for rule in rules if rule.kind == "in_set"]
    if not sets:
        return True
    other_sets = [frozenset(values) for values in sets[1:]]
    minimum, maximum = integer_limits((), arrow_type)
    return any(
        all(value in values for values in other_sets)
        and (not is_integer or minimum <= value <= maximum)
        and all(_satisfies(value, rule) for rule in rules)
        for value in sets[0]
    )


def _are_disjoint(limits: tuple[Rule, ...], is_integer: bool, arrow_type: str) -> bool:
    """Whether no number lies within all of the limits."""
    low: tuple[Bound | None, bool] = (None, False)
    high: tuple[Bound | None, bool] = (None, False)
    for rule in limits:
        low = _tighter(low, (rule.low, rule.strict_low), largest=True)
        high = _tighter(high, (rule.high, rule.strict_high), largest=False)
    minimum, maximum = integer_limits(limits, arrow_type) if is_integer else (low[0], high[0])
    if minimum is None or maximum is None:
        return False
    return minimum > maximum or (minimum == maximum and not is_integer and (low[1] or high[1]))


def _tighter(
    first: tuple[Bound | None, bool], second: tuple[Bound | None, bool], *, largest: bool
) -> tuple[Bound | None, bool]:
    """The tighter of two bounds, each with whether it is strict."""
    if first[0] is None or second[0] is None:
        return second if first[0] is None else first
    if first[0] == second[0]:
        return first[0], first[1] or second[1]
    return first if (first[0] > second[0]) == largest else second


def _satisfies(value: Any, rule: Rule) -> bool:
    match rule.kind:
        case "pattern":
            return re.search(rule.pattern or "", value) is not None
        case "between" | "length":
            return rule.allows(len(value) if rule.kind == "length" else value)
    return True


def require_regular_expression(pattern: str) -> None:
    """Raises ValueError if Python cannot compile `pattern`."""
    try:
        re.compile(pattern)
    except re.error as failure:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {failure}") from failure
