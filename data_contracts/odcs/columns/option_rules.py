"""The rules of `logicalTypeOptions`, and the options that Bloomery does not check."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from bloomery.data_contracts.expressions.sql import quote_name
from bloomery.data_contracts.odcs.columns.consistency import INEXACT, require_regular_expression
from bloomery.data_contracts.odcs.columns.typed_elements import (
    ArrayItem,
    TypedElement,
    find_format_failure,
    numeric_limits,
    parse_limit,
)
from bloomery.data_contracts.odcs.elements.physical_types import FORMATS, PHYSICAL_TYPES
from bloomery.data_contracts.odcs.elements.type_options import has_exact_bounds
from bloomery.data_contracts.odcs.rules import Rule


def limit_rules(target: str, item: TypedElement) -> list[Rule]:
    """The rules of the options that are limits of one number, text or array."""
    options = item.logical_type_options
    fields: dict[str, Any] = {"target": target, "is_of_items": isinstance(item, ArrayItem)}
    rules = []
    if item.logical_type in ("integer", "number"):
        low, high, strict_low, strict_high = numeric_limits(item)
        if low is not None or high is not None:
            limits: dict[str, Any] = {"low": low, "high": high, "strict_low": strict_low, "strict_high": strict_high}
            rules.append(Rule(kind="between", **fields, **limits))
    if item.logical_type == "string":
        if options.min_length is not None or options.max_length is not None:
            rules.append(Rule(kind="length", **fields, low=options.min_length, high=options.max_length))
        if options.pattern is not None and _pattern_failure(options.pattern) is None:
            rules.append(Rule(kind="pattern", **fields, pattern=options.pattern))
    if item.logical_type == "array" and (options.min_items is not None or options.max_items is not None):
        rules.append(Rule(kind="num_items", **fields, low=options.min_items, high=options.max_items))
    return rules


def _pattern_failure(pattern: str) -> str | None:
    try:
        require_regular_expression(pattern)
    except ValueError as failure:
        return str(failure)
    return None


def option_conditions(item: TypedElement) -> Iterator[tuple[str | None, str]]:
    """For each option that a condition in SQL expresses, the condition or None, and why it cannot be checked."""
    options, column = item.logical_type_options, quote_name(item.name or "")
    if item.logical_type in ("date", "timestamp"):
        for (bound, is_strict), sign in ((options.low_bound(), ">"), (options.high_bound(), "<")):
            if bound is None:
                continue
            try:
                moment = parse_limit(str(bound), item)
            except ValueError as failure:
                yield None, f"the limit {bound!r} is not in ISO 8601: {failure}"
            else:
                yield f"{column} {sign}{'' if is_strict else '='} {_moment(moment)}", ""
    if options.multiple_of is not None and item.logical_type == "integer":
        if options.multiple_of == int(options.multiple_of):
            yield f"{column} % {int(options.multiple_of)} = 0", ""
        else:
            yield None, f"multipleOf: {options.multiple_of} is checked only where it is a whole number"


def _moment(moment: date | datetime) -> str:
    return f"TIMESTAMP '{moment}'" if isinstance(moment, datetime) else f"DATE '{moment}'"


def find_unchecked_options(item: TypedElement) -> Iterator[str]:
    """The options that Bloomery does not check."""
    options, logical_type = item.logical_type_options, item.logical_type
    if not isinstance(item, ArrayItem):
        yield from (reason for condition, reason in option_conditions(item) if condition is None)
    elif logical_type in ("date", "timestamp") and (options.low_bound()[0] or options.high_bound()[0]):
        yield f"limits of a {logical_type} in an array are not supported"
    if logical_type in ("integer", "number"):
        if not has_exact_bounds(options.low_bound()[0], options.high_bound()[0]):
            yield INEXACT
        if options.multiple_of is not None and (logical_type == "number" or isinstance(item, ArrayItem)):
            yield f"multipleOf: {options.multiple_of} is checked only for columns of whole numbers"
        if options.format is not None and FORMATS.get(options.format) not in PHYSICAL_TYPES[logical_type]:
            yield f"format: {options.format} is not supported; values are stored as {item.arrow_type}"
    elif options.format is not None:
        failure = find_format_failure(options.format) if logical_type in ("date", "timestamp") else "it is not checked"
        if failure is not None:
            yield f"format: {options.format}: {failure}"
    if logical_type == "string" and options.pattern is not None:
        failure = _pattern_failure(options.pattern)
        if failure is not None:
            yield failure
    if options.default_timezone not in (None, "UTC", "Etc/UTC"):
        yield f"defaultTimezone: {options.default_timezone}; times without an offset are read as UTC"
    if options.unique_items:
        yield "uniqueItems is not checked"
    if logical_type == "boolean":
        yield from (f"{key} has no meaning for boolean" for key in options.model_dump(by_alias=True))
