"""The quality checks of a contract file: the standard's library metrics, SQL, and rules beyond the standard.

Source: Open Data Contract Standard v3.1, Data Quality.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationInfo, WrapValidator, model_validator
from pydantic.alias_generators import to_camel

from bloomery.data_contracts.odcs.base import CamelModel, Element, Number, PlainValue, Unsupported, dates_as_text
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


_WARNINGS = frozenset({"warning", "warn", "info", "information", "notice", "low", "minor"})
_MISSING_LIMIT = {
    "": "{0} needs one of the mustBe… keys",
    "count": "rowCount needs one of the mustBe… keys",
    "number": "{0} needs one of the mustBe… keys to compare with",
    "share": "{0} needs mustBe: 0, or mustBeLessOrEqualTo with unit: percent, and no more",
}

# Keys that apply to one type of check only, and that type.
_OWNERS = {
    "metric": "library",
    "arguments": "library",
    "query": "sql",
    "engine": "custom",
    "implementation": "custom",
}


class Arguments(CamelModel):
    """The arguments of a library metric. The standard allows any key and value; those here can be checked."""

    model_config = ConfigDict(extra="allow")

    valid_values: PlainValue = None
    pattern: PlainValue = None
    missing_values: PlainValue = None
    properties: PlainValue = None

    def present_names(self) -> list[str]:
        """The names of the arguments, as in Python."""
        return [
            *(name for name in type(self).model_fields if getattr(self, name) is not None),
            *(self.model_extra or {}),
        ]

    def find_limitations(self) -> Iterator[str]:
        """Why the values cannot be checked: they have another form."""
        for name in ("valid_values", "missing_values", "properties"):
            values = getattr(self, name)
            if values is not None and (not isinstance(values, list | tuple) or not values):
                yield f"{to_camel(name)} must be a list of at least 1 item, not {values!r}"
        if self.properties is not None and not all(isinstance(name, str) and name for name in self.properties):
            yield f"properties must be a list of column names, not {self.properties!r}"
        if self.pattern is not None and (not isinstance(self.pattern, str) or not self.pattern):
            yield f"pattern must be a regular expression, not {self.pattern!r}"


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
_IMPLEMENTATION: TypeAdapter[Any] = TypeAdapter(Implementation)


def _parse_implementation(value: Any, _: Any, info: ValidationInfo) -> Any:
    """The rule of Bloomery's engine; of another engine, the text or mapping as it is."""
    if info.data.get("engine") == "bloomery" and value is not None:
        return _IMPLEMENTATION.validate_python(value)
    if not isinstance(value, str | dict | None):
        raise ValueError("must be a text or a mapping")
    return dates_as_text(value)


Metric = Literal["rowCount", "invalidValues", "nullValues", "missingValues", "duplicateValues"]


class Quality(Element):
    """One quality check of a column or of the table."""

    name: str | None = None
    type: Literal["library", "text", "sql", "custom"] = "library"
    metric: Metric | None = None
    rule: str | None = None  # deprecated since v3.1, where `metric` replaces it
    arguments: Arguments | None = None
    query: str | None = None
    engine: str | None = None
    implementation: Annotated[Implementation | dict[str, Any] | str | None, WrapValidator(_parse_implementation)] = None
    must_be: PlainValue = None
    must_not_be: PlainValue = None
    must_be_greater_than: Number | None = None
    must_be_greater_or_equal_to: Number | None = None
    must_be_less_than: Number | None = None
    must_be_less_or_equal_to: Number | None = None
    must_be_between: tuple[Number, Number] | None = None
    must_not_be_between: tuple[Number, Number] | None = None
    unit: str = "rows"
    dimension: (
        Literal["accuracy", "completeness", "conformity", "consistency", "coverage", "timeliness", "uniqueness"] | None
    ) = None
    method: str | None = None
    severity: str = "error"
    business_impact: str | None = None
    scheduler: str | None = None
    schedule: str | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        self._require_keys()
        try:
            self._require_support()
        except Unsupported:
            if self.is_own:
                raise
        return self

    @property
    def is_own(self) -> bool:
        """Whether the check is one of Bloomery's rules beyond the standard."""
        return self.type == "custom" and self.engine == "bloomery"

    @property
    def limitation(self) -> str | None:
        """Why the check cannot be carried out, whatever it is about; None if it can."""
        try:
            self._require_support()
        except Unsupported as failure:
            return str(failure)
        return None

    @property
    def check_name(self) -> str:
        """The check's name in messages: its metric, custom rule or type."""
        if self.is_own:
            return self.implementation.rule  # type: ignore[union-attr]  # parsed, since the engine is ours
        return self.metric or self.type

    @property
    def title(self) -> str:
        """What the check says, for lists of checks: its text, query or name."""
        text = self.description or self.name or self.query or self.rule or ""
        return f"{self.engine or self.check_name} check" + (f" {' '.join(text.split())!r}" if text else "")

    @property
    def rule_severity(self) -> Severity:
        """`warning` for a check that is only reported. The standard leaves the word free; unknown ones are errors."""
        return "warning" if self.severity.lower() in _WARNINGS else "error"

    @property
    def measures(self) -> Literal["", "count", "number", "share"]:
        """The compared quantity: none, the number of rows, a number, or the share of rows that break the rule."""
        if self.type == "text" or (self.type == "custom" and not self.is_own):
            return ""
        if self.metric == "rowCount":
            return "count"
        return "number" if self.check_name in ("sql", "distribution") else "share"

    @property
    def limit_keys(self) -> list[str]:
        """The mustBe… keys of the check, as the file spells them."""
        return [to_camel(name) for name in _LIMITS if getattr(self, name) is not None]

    def _require_keys(self) -> None:
        """Raises ValueError where keys are missing or belong to another type of check."""
        kind = {
            "library": "a library metric",
            "text": "a check of type text",
            "sql": "a check of type sql",
            "custom": "a check of type custom",
        }[self.type]
        needs_metric = "type" in self.model_fields_set or self.limit_keys or self.arguments is not None
        if self.type == "library" and self.metric is None and self.rule is None and needs_metric:
            raise ValueError("a library metric needs the key metric")
        for key in {"sql": ("query",), "custom": ("engine", "implementation")}.get(self.type, ()):
            if getattr(self, key) is None:
                raise ValueError(f"{kind} needs the key {key}")
        for name, owner in _OWNERS.items():
            if owner != self.type and getattr(self, name) is not None:
                raise ValueError(f"{name} has no meaning for {kind}")
        if self.type == "text" and self.limit_keys:
            raise ValueError("a check of type text is only for people; remove its mustBe… keys")
        if (self.metric is not None or self.type == "sql") and not self.limit_keys:
            raise ValueError(_MISSING_LIMIT[self.measures].format(self.check_name))

    def _require_support(self) -> None:
        """Raises Unsupported where the check cannot be carried out, and ValueError where it contradicts itself."""
        if self.type == "text":
            raise Unsupported("a text is for people")
        if self.type == "custom" and not self.is_own:
            raise Unsupported(f"engine {self.engine!r} is not supported; use engine: bloomery, or type: text")
        if self.type == "library" and self.metric is None:
            raise Unsupported("there is no metric")
        self._require_supported_limits()
        self._require_arguments()
        match self.measures:
            case "count":
                self._require_count()
            case "number":
                self._require_number()
            case "share":
                self.tolerance()

    def _require_supported_limits(self) -> None:
        if self.must_not_be is not None or self.must_not_be_between is not None:
            raise Unsupported("mustNotBe and mustNotBeBetween are not supported; use the other mustBe… keys")
        must_be = self.must_be
        if must_be is not None and (isinstance(must_be, bool) or not isinstance(must_be, int | float)):
            raise Unsupported(f"mustBe is compared with a number, not with {must_be!r}")
        if self.unit not in ("rows", "percent"):
            raise Unsupported(f"unit {self.unit!r} is not supported; use rows or percent")

    def _require_arguments(self) -> None:
        supported = {
            "invalidValues": ("valid_values", "pattern"),
            "missingValues": ("missing_values",),
            "duplicateValues": ("properties",),
        }.get(self.metric or "", ())
        argument_names = () if self.arguments is None else tuple(self.arguments.present_names())
        for name in argument_names:
            if name not in supported:
                raise Unsupported(f"the argument {to_camel(name)} has no meaning for {self.metric}")
        if self.metric in ("invalidValues", "missingValues") and len(argument_names) != 1:
            names = " or ".join(f"arguments.{to_camel(name)}" for name in supported)
            raise Unsupported(f"{self.metric} needs {names}, and only one")
        for limitation in () if self.arguments is None else self.arguments.find_limitations():
            raise Unsupported(limitation)

    def _require_count(self) -> None:
        if self.unit != "rows":
            raise Unsupported("rowCount counts rows, not percent")
        min_rows, max_rows = self.row_count_limits()
        if min_rows is None and max_rows is None:
            raise ValueError(_MISSING_LIMIT["count"])
        if max_rows is not None and (min_rows or 0) > max_rows:
            raise ValueError(f"no table has at least {min_rows or 0} and at most {max_rows} rows")

    def _require_number(self) -> None:
        if self.unit != "rows":
            raise Unsupported(f"{self.check_name} gives a number, not percent")
        limits = self.number_limits()
        low, high = limits["low"], limits["high"]
        if low is None and high is None:
            raise ValueError(_MISSING_LIMIT["number"].format(self.check_name))
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
            Unsupported: the limits are not those of a share.
            ValueError: there is no limit, or more than one.
        """
        keys = self.limit_keys
        if not keys and self.type == "custom":
            return None
        if len(keys) != 1:
            raise ValueError(_MISSING_LIMIT["share"].format(self.check_name))
        if set(keys) & {"mustBeGreaterThan", "mustBeGreaterOrEqualTo"}:
            raise Unsupported(_MISSING_LIMIT["share"].format(self.check_name))
        limits = self.number_limits()
        limit, is_below = limits["high"], limits["strict_high"]
        if limits["low"] not in (None, 0) or limit < 0 or (is_below and limit == 0):
            raise Unsupported(f"{self.check_name} counts rows that break the rule; use mustBe: 0 or unit: percent")
        if self.unit == "rows":
            if limit == 0 or (is_below and limit <= 1):
                return None
            raise Unsupported(
                f"{limit} rows are many in a small data set and few in a large one; use mustBe: 0 or unit: percent"
            )
        if limit > 100 or (limit == 100 and not is_below):
            raise Unsupported(f"{self.check_name} with {limit} percent lets every row break the rule")
        share = float(Decimal(str(limit)) / 100)  # 0.7 percent is 0.007, and not the float below it
        return math.nextafter(share, 0) if is_below else share
