"""The rules of a contract: what must hold for a row, a column or the table."""

from __future__ import annotations

import math
import re
from typing import Any, Literal

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.durations import spell_duration

Bound = int | float
Severity = Literal["error", "warning"]
Divergence = Literal["psi", "kl"]
RuleKind = Literal[
    "required",
    "unique",
    "between",
    "in_set",
    "pattern",
    "length",
    "num_items",
    "num_rows",
    "fits",
    "expression",
    "determined",
    "query",
    "fresh",
    "distribution",
]


class Rule(Document):
    """One rule, as Great Expectations checks it and as errors describe it.

    `target` is a column, `column[]` for the elements of an array column, or "" for the table as a whole. A row that
    breaks a rule of severity error is quarantined; a warning is reported and the row stays. `tolerance` is the share of
    the rows that may break the rule before the contract as a whole is broken.
    """

    target: str
    kind: RuleKind
    low: Bound | None = None
    high: Bound | None = None
    strict_low: bool = False
    strict_high: bool = False
    values: tuple[Any, ...] = ()
    pattern: str | None = None
    # unique: the columns of the key; determined: those that determine the target; expression: those that it reads
    columns: tuple[str, ...] = ()
    expression: str | None = None  # expression: a condition in SQL; query: an SQL query for one number
    reference: str | None = None  # distribution: the name of the reference
    divergence: Divergence | None = None  # distribution: the measure that `high` limits
    severity: Severity = "error"
    tolerance: float | None = None
    is_of_items: bool = False  # about the elements of an array column; the name of a column, too, may end with []

    @property
    def column(self) -> str:
        return self.target.removesuffix("[]") if self.is_of_items else self.target

    def allows(self, number: Bound) -> bool:
        """Whether `number` lies within the limits."""
        is_above = self.low is None or (number > self.low if self.strict_low else number >= self.low)
        return is_above and (self.high is None or (number < self.high if self.strict_high else number <= self.high))

    @property
    def is_about_rows(self) -> bool:
        """Whether the rule can be checked for each row on its own."""
        return self.kind in ROW_KINDS

    @property
    def sentence(self) -> str:
        """The rule as text, for reports, quarantine files and error messages."""
        match self.kind:
            case "required":
                return "must not be null"
            case "unique":
                return f"{' and '.join(self.columns)} must be unique together" if self.columns else "must be unique"
            case "in_set":
                return f"must be one of {', '.join(str(value) if value != '' else repr('') for value in self.values)}"
            case "pattern":
                return f"must match {self.pattern}"
            case "expression":
                return f"must satisfy {_on_one_line(self.expression)}"
            case "determined":
                return f"must be determined by {' and '.join(self.columns)}"
            case "fresh":
                return f"newest value must be at most {spell_duration(self.high or 0)} old"
            case "fits":
                if self.low is None:
                    return "must fit the column's type"
                if isinstance(self.low, int):
                    return f"must be a whole number from {self.low} to {self.high}"
                return f"must be a finite number from {self.low:.3g} to {self.high:.3g}"
        if self.kind in _UNITS:
            unit = _UNITS[self.kind] + ("" if (self.low if self.high is None else self.high) == 1 else "s")
            return f"must have {self._limits()} {unit}"
        subject = {
            "query": f"result of {_on_one_line(self.expression)} ",
            "distribution": f"{self.divergence} against {self.reference} ",
        }.get(self.kind, "")
        return f"{subject}must be {self._limits()}"

    def _limits(self) -> str:
        if self.low is not None and self.low == self.high:
            return f"exactly {self.low}"
        low = "" if self.low is None else f"{'greater than' if self.strict_low else 'at least'} {self.low}"
        high = "" if self.high is None else f"{'less than' if self.strict_high else 'at most'} {self.high}"
        return " and ".join(filter(None, (low, high)))


_UNITS: dict[str, str] = {"length": "character", "num_items": "item", "num_rows": "row"}  # of a rule about a count
ROW_KINDS = frozenset({"required", "between", "in_set", "pattern", "length", "num_items", "fits", "expression"})


def _on_one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def tighter_bound(included: Bound | None, excluded: Bound | None, *, largest: bool) -> tuple[Bound | None, bool]:
    """The tighter of two bounds, and whether it is exclusive."""
    if included is None or excluded is None:
        return (excluded, True) if included is None and excluded is not None else (included, False)
    is_excluded_tighter = excluded >= included if largest else excluded <= included
    return (excluded, True) if is_excluded_tighter else (included, False)


def integer_limits(rules: tuple[Rule, ...], arrow_type: str) -> tuple[int, int]:
    """The smallest and the largest integer that the type holds and the limits allow, both inclusive."""
    width = re.fullmatch(r"(u?)int(\d+)", arrow_type)
    bits = int(width[2]) if width else 64
    lower, upper = (0, 2**bits - 1) if width and width[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    for rule in rules:
        if rule.low is not None:
            lower = max(lower, math.floor(rule.low) + 1 if rule.strict_low else math.ceil(rule.low))
        if rule.high is not None:
            upper = min(upper, math.ceil(rule.high) - 1 if rule.strict_high else math.floor(rule.high))
    return lower, upper
