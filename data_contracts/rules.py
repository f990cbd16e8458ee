"""One thing that must hold of a data set, in words and in numbers."""

from __future__ import annotations

from typing import Any, Literal

from data_contracts.documents import Document

Bound = int | float


class Rule(Document):
    """One thing that must hold: what Great Expectations checks, and what an error names.

    `target` is a column, `column[]` for the elements of an array column, or "" for the table as a whole.
    """

    target: str
    kind: Literal["required", "unique", "between", "in_set", "pattern", "length", "num_items", "num_rows", "fits"]
    low: Bound | None = None
    high: Bound | None = None
    strict_low: bool = False
    strict_high: bool = False
    values: tuple[Any, ...] = ()
    pattern: str | None = None

    @property
    def column(self) -> str:
        return self.target.removesuffix("[]")

    @property
    def sentence(self) -> str:
        """The rule in words, as it stands in reports, quarantine files and error messages."""
        match self.kind:
            case "required":
                return "must not be null"
            case "unique":
                return "must be unique"
            case "in_set":
                return f"must be one of {', '.join(map(str, self.values))}"
            case "pattern":
                return f"must match {self.pattern}"
            case "fits":
                if self.low is None:
                    return "must be a value that the column's type can hold"
                if isinstance(self.low, int):
                    return f"must be a whole number from {self.low} to {self.high}"
                return f"must be a finite number from {self.low:.3g} to {self.high:.3g}"
        what = {"length": "length ", "num_items": "number of items ", "num_rows": "number of rows "}.get(self.kind, "")
        low = "" if self.low is None else f"{'greater than' if self.strict_low else 'at least'} {self.low}"
        high = "" if self.high is None else f"{'less than' if self.strict_high else 'at most'} {self.high}"
        return f"{what}must be {' and '.join(filter(None, (low, high)))}"


def tighter(included: Bound | None, excluded: Bound | None, *, largest: bool) -> tuple[Bound | None, bool]:
    """The bound that leaves fewer values, and whether the bound itself is left out."""
    if included is None or excluded is None:
        return (excluded, True) if included is None and excluded is not None else (included, False)
    excluded_istighter = excluded >= included if largest else excluded <= included
    return (excluded, True) if excluded_istighter else (included, False)
