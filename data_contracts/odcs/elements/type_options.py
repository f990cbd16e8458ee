"""`logicalTypeOptions`: the limits of one value.

Source: Open Data Contract Standard v3.1, Schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from datetime import date, datetime
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool, StrictInt
from pydantic.alias_generators import to_camel

from bloomery.data_contracts.odcs.base import CamelModel, Number, Problem, StandardType, dates_as_text, unknown_key
from bloomery.data_contracts.odcs.rules import Bound, tighter_bound

Count = Annotated[StrictInt, Field(ge=0)]

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_OPTIONS_OF: dict[StandardType, tuple[str, ...]] = {
    "integer": (*_BOUNDS, "multipleOf", "format"),
    "number": (*_BOUNDS, "multipleOf", "format"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "date": (*_BOUNDS, "format"),
    "timestamp": (*_BOUNDS, "format", "timezone", "defaultTimezone"),
    "time": (*_BOUNDS, "format", "timezone", "defaultTimezone"),
    "object": ("minProperties", "maxProperties", "required"),
    "array": ("minItems", "maxItems", "uniqueItems"),
}
_FORMATS: dict[StandardType, tuple[str, ...]] = {
    "integer": ("i8", "i16", "i32", "i64", "i128", "u8", "u16", "u32", "u64", "u128"),
    "number": ("f32", "f64"),
}


def _parse_limit(limit: Any) -> Any:
    limit = dates_as_text(limit)
    if isinstance(limit, float) and not math.isfinite(limit):
        raise ValueError("must be a finite number")
    if limit is not None and not isinstance(limit, int | float | str):
        raise ValueError("must be a number, or the text of a date or time")
    return limit


Limit = Annotated[Any, BeforeValidator(_parse_limit)]


class TypeOptions(CamelModel):
    """The limits of one value. Which of them apply depends on the logical type; a boolean may have any key."""

    model_config = ConfigDict(extra="allow")

    minimum: Limit = None
    maximum: Limit = None
    exclusive_minimum: Limit = None  # true or false before v3.1
    exclusive_maximum: Limit = None
    multiple_of: Annotated[Number, Field(gt=0)] | None = None
    min_length: Count | None = None
    max_length: Count | None = None
    pattern: str | None = None
    format: str | None = None
    timezone: StrictBool | None = None
    default_timezone: str | None = None
    min_items: Count | None = None
    max_items: Count | None = None
    unique_items: StrictBool | None = None
    min_properties: Count | None = None
    max_properties: Count | None = None
    required: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    def find_problems(self, logical_type: StandardType | None) -> Iterator[Problem]:
        """The keys that the standard does not know for the type, and values of another kind than the type has."""
        keys = [*(self.model_extra or {}), *(to_camel(name) for name in self._present_names())]
        if logical_type != "boolean":
            all_keys = tuple(map(to_camel, type(self).model_fields))
            known_keys = _OPTIONS_OF.get(logical_type or "boolean", all_keys)
            for key in keys:
                if key not in all_keys:
                    yield Problem(unknown_key(key, known_keys), key)
                elif key not in known_keys:
                    yield Problem(f"{key} has no meaning for {logical_type}", key)
        kinds: tuple[type, ...] = (int, float) if logical_type in ("integer", "number") else (str,)
        expected = "a number" if logical_type in ("integer", "number") else "text"
        if logical_type in ("integer", "number", "date", "timestamp", "time"):
            for name in ("minimum", "maximum", "exclusive_minimum", "exclusive_maximum"):
                bound, key = getattr(self, name), to_camel(name)
                is_flag = isinstance(bound, bool) and name.startswith("exclusive")
                if bound is not None and not is_flag and (isinstance(bound, bool) or not isinstance(bound, kinds)):
                    yield Problem(f"{key} of {logical_type} must be {expected}, not {bound!r}", key)
        formats = _FORMATS.get(logical_type or "boolean")
        if formats is not None and self.format is not None and self.format not in formats:
            choices = ", ".join(formats)
            yield Problem(f"format of {logical_type} must be one of {choices}, not {self.format!r}", "format")

    def _present_names(self) -> Iterator[str]:
        return (name for name in type(self).model_fields if getattr(self, name) is not None)

    def low_bound(self) -> tuple[Any, bool]:
        """The lower limit, and whether it is exclusive."""
        return _bound(self.minimum, self.exclusive_minimum, largest=True)

    def high_bound(self) -> tuple[Any, bool]:
        """The upper limit, and whether it is exclusive."""
        return _bound(self.maximum, self.exclusive_maximum, largest=False)


def _bound(included: Any, excluded: Any, *, largest: bool) -> tuple[Any, bool]:
    if isinstance(excluded, bool):  # before v3.1 it says whether the other one is exclusive
        return included, excluded and included is not None
    return tighter_bound(included, excluded, largest=largest)


def parse_moment(text: str, logical_type: StandardType) -> date | datetime:
    """The date, or date and time, that a limit states.

    Raises:
        ValueError: `text` is not in ISO 8601.
    """
    if logical_type == "date":
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text) is None:
            raise ValueError(f"{text!r} is not a date such as 2024-02-29")
        return date.fromisoformat(text)
    return datetime.fromisoformat(text)


def has_exact_bounds(*bounds: Bound | None) -> bool:
    """Whether float64 holds every integer up to each bound."""
    return all(bound is None or (math.isfinite(bound) and abs(bound) < 2**53) for bound in bounds)
