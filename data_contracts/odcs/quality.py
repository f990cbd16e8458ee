"""The quality checks of a contract file: the standard's library metrics, SQL, and rules beyond the standard.

Source: Open Data Contract Standard v3.1, Data Quality.
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from bloomery.data_contracts.odcs.base import CamelModel, Element, PlainValue
from bloomery.data_contracts.odcs.rules import Bound, Divergence, Severity, tighter_bound

Name = Annotated[str, Field(min_length=1)]
Length = Annotated[int, Field(ge=0)]

_LIMITS = (
    "must_be",
    "must_not_be",
    "must_be_greater_than",
    "must_be_greater_or_equal_to",
    "must_be_less_than",
    "must_be_less_or_equal_to",
    "must_be_between",
    "must_not_be_between",
)


# Keys that apply to one type of check only, and that type.
_OWNERS = {
    "metric": "library",
    "arguments": "library",
    "query": "sql",
    "engine": "custom",
    "implementation": "custom",
}


class Arguments(CamelModel):
    """The arguments of a library metric."""

    valid_values: Annotated[tuple[PlainValue, ...], Field(min_length=1)] | None = None
    pattern: Name | None = None
    missing_values: Annotated[tuple[PlainValue, ...], Field(min_length=1)] | None = None
    properties: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None


class RowCondition(CamelModel):
    """A condition in SQL that must not be false for any row."""

    rule: Literal["expression"]
    expression: Name


class Dependency(CamelModel):
    """A functional dependency: rows that agree in `columns` agree in `target`."""

    rule: Literal["determines"]
    columns: Annotated[tuple[Name, ...], Field(min_length=1)]
    target: Name


class ValueLimits(CamelModel):
    """Limits of a number, with a severity and a tolerance of their own."""

    rule: Literal["between"]
    minimum: Bound | None = None
    maximum: Bound | None = None
    exclusive_minimum: Bound | None = None
    exclusive_maximum: Bound | None = None

    def limits(self) -> dict[str, Any]:
        """The limits as the fields of a rule."""
        low, strict_low = tighter_bound(self.minimum, self.exclusive_minimum, largest=True)
        high, strict_high = tighter_bound(self.maximum, self.exclusive_maximum, largest=False)
        return {"low": low, "high": high, "strict_low": strict_low, "strict_high": strict_high}


class LengthLimits(CamelModel):
    """Limits of a text's length, with a severity and a tolerance of their own."""

    rule: Literal["length"]
    min_length: Length | None = None
    max_length: Length | None = None


class Distribution(CamelModel):
    """The largest divergence of a column's distribution from a named reference."""

    rule: Literal["distribution"]
    divergence: Divergence
    reference: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


Implementation = Annotated[
    RowCondition | Dependency | ValueLimits | LengthLimits | Distribution, Field(discriminator="rule")
]
Metric = Literal["rowCount", "invalidValues", "nullValues", "missingValues", "duplicateValues"]


class Quality(Element):
    """One quality check of a column or of the table."""

    name: str | None = None
    type: Literal["library", "text", "sql", "custom"] = "library"
    metric: Metric | None = None
    arguments: Arguments | None = None
    query: Name | None = None
    engine: str | None = None
    implementation: Implementation | None = None
    must_be: Bound | None = None
    must_not_be: Bound | None = None
    must_be_greater_than: Bound | None = None
    must_be_greater_or_equal_to: Bound | None = None
    must_be_less_than: Bound | None = None
    must_be_less_or_equal_to: Bound | None = None
    must_be_between: tuple[Bound, Bound] | None = None
    must_not_be_between: tuple[Bound, Bound] | None = None
    unit: Literal["rows", "percent"] = "rows"
    dimension: str | None = None
    method: str | None = None
    severity: Severity = "error"
    business_impact: str | None = None
    scheduler: str | None = None
    schedule: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        self._require_keys()
        if self.must_not_be is not None or self.must_not_be_between is not None:
            raise ValueError("mustNotBe and mustNotBeBetween are not supported; use the other mustBe… keys")
        match self.measures:
            case "":
                if self.limit_keys:
                    raise ValueError("a check of type text is only for people; remove its mustBe… keys")
            case "count":
                self._require_count()
            case "number":
                self._require_number()
            case "share":
                self.tolerance()
        return self

    @property
    def check_name(self) -> str:
        """The check's name in messages: its metric, custom rule or type."""
        if self.implementation is not None:
            return self.implementation.rule
        return self.metric or self.type

    @property
    def measures(self) -> Literal["", "count", "number", "share"]:
        """The compared quantity: none, the number of rows, a number, or the share of rows that break the rule."""
        if self.type == "text":
            return ""
        if self.metric == "rowCount":
            return "count"
        return "number" if self.check_name in ("sql", "distribution") else "share"

    @property
    def limit_keys(self) -> list[str]:
        """The mustBe… keys of the check, as the file spells them."""
        return [to_camel(name) for name in _LIMITS if getattr(self, name) is not None]

    def _require_keys(self) -> None:
        required_key, kind = {
            "library": ("metric", "a library metric"),
            "text": ("description", "a check of type text"),
            "sql": ("query", "a check of type sql"),
            "custom": ("implementation", "a check of type custom"),
        }[self.type]
        if getattr(self, required_key) is None:
            raise ValueError(f"{kind} needs the key {required_key}")
        if self.type == "custom" and self.engine != "bloomery":
            raise ValueError(f"engine {self.engine!r} is not supported; use engine: bloomery, or type: text")
        for name, owner in _OWNERS.items():
            if owner != self.type and getattr(self, name) is not None:
                raise ValueError(f"{name} has no meaning for {kind}")
        self._require_arguments()

    def _require_arguments(self) -> None:
        supported = {
            "invalidValues": ("valid_values", "pattern"),
            "missingValues": ("missing_values",),
            "duplicateValues": ("properties",),
        }.get(self.metric or "", ())
        argument_names = () if self.arguments is None else tuple(self.arguments.model_dump(exclude_none=True))
        for name in argument_names:
            if name not in supported:
                raise ValueError(f"the argument {to_camel(name)} has no meaning for {self.metric}")
        if self.metric in ("invalidValues", "missingValues") and len(argument_names) != 1:
            names = " or ".join(f"arguments.{to_camel(name)}" for name in supported)
            raise ValueError(f"{self.metric} needs {names}, and only one")

    def _require_count(self) -> None:
        if self.unit != "rows":
            raise ValueError("rowCount counts rows, not percent")
        min_rows, max_rows = self.row_count_limits()
        if min_rows is None and max_rows is None:
            raise ValueError("rowCount needs one of the mustBe… keys")
        if max_rows is not None and (min_rows or 0) > max_rows:
            raise ValueError(f"no table has at least {min_rows or 0} and at most {max_rows} rows")

    def _require_number(self) -> None:
        if self.unit != "rows":
            raise ValueError(f"{self.check_name} gives a number, not percent")
        limits = self.number_limits()
        low, high = limits["low"], limits["high"]
        if low is None and high is None:
            raise ValueError(f"{self.check_name} needs one of the mustBe… keys to compare with")
        is_open = limits["strict_low"] or limits["strict_high"]
        if low is not None and high is not None and (low > high or (low == high and is_open)):
            raise ValueError(f"no number can be at least {low} and at most {high}")
        if self.check_name == "distribution" and (high is None or low is not None or high <= 0):
            raise ValueError("a divergence is 0 or more: limit it by mustBeLessThan or mustBeLessOrEqualTo, above 0")

    def row_count_limits(self) -> tuple[int | None, int | None]:
        """The fewest and the most rows allowed, both included; None where there is no limit."""
        limits = self.number_limits()
        low, high = limits["low"], limits["high"]
        min_rows = None if low is None else math.floor(low) + 1 if limits["strict_low"] else math.ceil(low)
        max_rows = None if high is None else math.ceil(high) - 1 if limits["strict_high"] else math.floor(high)
        return min_rows, max_rows

    def number_limits(self) -> dict[str, Any]:
        """The limits of the mustBe… keys, as fields of a rule."""
        low, strict_low = tighter_bound(self.must_be_greater_or_equal_to, self.must_be_greater_than, largest=True)
        high, strict_high = tighter_bound(self.must_be_less_or_equal_to, self.must_be_less_than, largest=False)
        for minimum, maximum in ((self.must_be, self.must_be), self.must_be_between or (None, None)):
            if minimum is not None and (low is None or minimum > low):
                low, strict_low = minimum, False
            if maximum is not None and (high is None or maximum < high):
                high, strict_high = maximum, False
        return {"low": low, "high": high, "strict_low": strict_low, "strict_high": strict_high}

    def tolerance(self) -> float | None:
        """The share of rows that may break the rule; None where only the contract's quarantineLimit limits it.

        Raises:
            ValueError: the limits are not those of a share.
        """
        keys = self.limit_keys
        if not keys and self.type == "custom":
            return None
        if len(keys) != 1 or set(keys) & {"mustBeGreaterThan", "mustBeGreaterOrEqualTo"}:
            raise ValueError(
                f"{self.check_name} needs mustBe: 0, or mustBeLessOrEqualTo with unit: percent, and no more"
            )
        limits = self.number_limits()
        limit, is_below = limits["high"], limits["strict_high"]
        if limits["low"] not in (None, 0) or limit < 0 or (is_below and limit == 0):
            raise ValueError(f"{self.check_name} counts rows that break the rule; use mustBe: 0 or unit: percent")
        if self.unit == "rows":
            if limit == 0 or (is_below and limit <= 1):
                return None
            raise ValueError(
                f"{limit} rows are many in a small data set and few in a large one; use mustBe: 0 or unit: percent"
            )
        if limit > 100 or (limit == 100 and not is_below):
            raise ValueError(f"{self.check_name} with {limit} percent lets every row break the rule")
        share = float(Decimal(str(limit)) / 100)  # 0.7 percent is 0.007, and not the float below it
        return math.nextafter(share, 0) if is_below else share
