"""Columns and items of arrays with a type that can be read, and the limits that follow from their options."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import date, datetime
from typing import Any

from bloomery.data_contracts.odcs.base import LogicalType, Problem, Unsupported
from bloomery.data_contracts.odcs.columns.date_formats import parse_format
from bloomery.data_contracts.odcs.elements.physical_types import FORMATS, PHYSICAL_TYPES, refine_type
from bloomery.data_contracts.odcs.elements.properties import Property
from bloomery.data_contracts.odcs.elements.type_options import has_exact_bounds, parse_moment
from bloomery.data_contracts.odcs.rules import Bound, Rule, integer_limits


class TypedElement(Property):
    """A column or the items of an array, with a type that can be read."""

    logical_type: LogicalType

    def value_range(self) -> tuple[Bound | None, Bound | None]:
        """The smallest and the largest value that the limits and an integer type allow, both inclusive."""
        low, high, strict_low, strict_high = numeric_limits(self)
        if self.logical_type != "integer":
            if low is not None and low == high and (strict_low or strict_high):
                return math.inf, -math.inf
            return low, high
        limits = Rule(target="", kind="between", low=low, high=high, strict_low=strict_low, strict_high=strict_high)
        return integer_limits((limits,), self.arrow_type)

    @property
    def date_format(self) -> str | None:
        """How dates or times are written as text, where the contract has a format that is supported."""
        text = self.logical_type_options.format
        if self.logical_type not in ("date", "timestamp") or text is None:
            return None
        return text if find_format_failure(text) is None else None

    @property
    def arrow_type(self) -> str:
        """The name of the Arrow type that values of this item have on disk."""
        return self.physical_type or PHYSICAL_TYPES[self.logical_type][0]

    def find_crossed_limits(self) -> Iterator[Problem]:
        """The pairs of limits that no value can satisfy."""
        options = self.logical_type_options
        pairs: list[tuple[Any, Any]] = [
            (options.min_length, options.max_length),
            (options.min_items, options.max_items),
        ]
        if self.logical_type in ("integer", "number"):
            pairs.append(self.value_range())
        for low, high in pairs:
            if low is not None and high is not None and low > high:
                yield Problem(f"no value can be at least {low} and at most {high}", "logicalTypeOptions")
        if self.logical_type in ("date", "timestamp"):
            bounds = [bound for bound, _ in (options.low_bound(), options.high_bound())]
            try:
                first, last = (parse_limit(str(bound), self) for bound in bounds)
                is_crossed = first > last
            except (ValueError, TypeError):  # no limit, not a date, or with and without an offset
                return
            if is_crossed:
                yield Problem(f"no value can be at least {bounds[0]} and at most {bounds[1]}", "logicalTypeOptions")


class ArrayItem(TypedElement):
    """The type and limits of an array's elements."""

    required: bool = True


def resolve_type(source: Property, *, has_arrow_types: bool) -> dict[str, Any]:
    """The fields of `source`, with a logical type that can be read, and the stored type or None for the default.

    Raises:
        Unsupported: there is no such type.
    """
    logical_type = refine_type(source.logical_type, source.physical_type)
    if logical_type is None:
        physical_type = "no physicalType" if source.physical_type is None else f"physicalType {source.physical_type!r}"
        raise Unsupported(f"it has no logicalType, and {physical_type} does not tell its type")
    if logical_type == "object" or logical_type == "time":
        raise Unsupported(f"values of type {logical_type} are not supported")
    stored_types = PHYSICAL_TYPES[logical_type]
    # `int8` has 8 bits in Arrow and 8 bytes in PostgreSQL.
    names_stored_type = source.physical_type in stored_types and (has_arrow_types or source.physical_type != "int8")
    stored_type = source.physical_type if names_stored_type else FORMATS.get(source.logical_type_options.format or "")
    fields = {name: getattr(source, name) for name in type(source).model_fields}
    return {
        **fields,
        "logical_type": logical_type,
        "physical_type": stored_type if stored_type in stored_types else None,
    }


def numeric_limits(item: TypedElement) -> tuple[Bound | None, Bound | None, bool, bool]:
    """The lower and upper limit of a number, and whether each is exclusive. Limits that are inexact do not count."""
    options = item.logical_type_options
    (low, strict_low), (high, strict_high) = options.low_bound(), options.high_bound()
    if not has_exact_bounds(low):
        low, strict_low = None, False
    if not has_exact_bounds(high):
        high, strict_high = None, False
    return low, high, strict_low, strict_high


def find_format_failure(date_format: str) -> str | None:
    """Why the format of dates and times is not supported; None if it is."""
    try:
        parse_format(date_format)
    except ValueError as failure:
        return str(failure)
    return None


def parse_limit(limit: str, item: TypedElement) -> date | datetime:
    """The moment that a limit of a date or time states, in ISO 8601 or in the format of the values.

    Raises:
        ValueError: it is in neither.
    """
    try:
        return parse_moment(limit, item.logical_type)
    except ValueError:
        if item.date_format is None:
            raise
        date_format = parse_format(item.date_format)
        moment = date_format.parse_date(limit) if item.logical_type == "date" else date_format.parse(limit)
        if moment is None:
            raise
        return moment
