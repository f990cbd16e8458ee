"""The service levels of a contract. Freshness is checked; the others are descriptive.

Source: Open Data Contract Standard v3.1, Service-Level Agreement.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from bloomery.data_contracts.odcs.base import CamelModel, PlainValue
from bloomery.data_contracts.odcs.rules import Rule

_FRESHNESS_PROPERTIES = ("freshness", "latency", "ly")
_SIZES_S = {
    ("s", "sec", "second", "seconds"): 1,
    ("m", "min", "minute", "minutes"): 60,
    ("h", "hr", "hour", "hours"): 3600,
    ("d", "day", "days"): 86400,
    ("w", "wk", "week", "weeks"): 7 * 86400,
    ("y", "yr", "year", "years"): 365 * 86400,
}
_UNITS_S = {name: size for names, size in _SIZES_S.items() for name in names}


class ServiceLevel(CamelModel):
    """One entry of `slaProperties`. A year has 365 days."""

    id: str | None = None
    property_: Annotated[str, Field(alias="property")]
    value: PlainValue
    value_ext: PlainValue = None
    unit: str | None = None
    element: str | None = None
    driver: str | None = None
    description: str | None = None
    scheduler: str | None = None
    schedule: str | None = None

    @property
    def is_fresh(self) -> bool:
        """True if the service level limits the age of the newest value."""
        return self.property_.lower() in _FRESHNESS_PROPERTIES

    @property
    def elements(self) -> tuple[str, ...]:
        """The columns, as COLUMN or TABLE.COLUMN."""
        return tuple(part.strip() for part in (self.element or "").split(",") if part.strip())

    def find_misuses(self, table: str, types: Mapping[str, str]) -> Iterator[str]:
        """Why the service level does not apply to `table`, whose columns have the logical `types`."""
        if not self.is_fresh:
            close = difflib.get_close_matches(self.property_.lower(), _FRESHNESS_PROPERTIES, n=1, cutoff=0.8)
            if close:
                yield f"unknown property {self.property_!r}; did you mean {close[0]!r}?"
            return
        value: Any = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            yield f"{self.property_} must be a number above 0, not {value!r}"
        if (self.unit or "").lower() not in _UNITS_S:
            yield f"{self.property_} needs a unit: s, m (minutes), h, d, w or y, not {self.unit!r}"
        if not self.elements:
            yield f"{self.property_} needs element: the column of dates or times that has the newest value"
        for element in self.elements:
            name = element.removeprefix(f"{table}.")
            if name not in types:
                yield f"there is no column {element}; there are {', '.join(types)}"
            elif types[name] not in ("date", "timestamp"):
                yield f"column {name} is {types[name]}, but must be date or timestamp"

    def rules(self) -> Iterator[Rule]:
        """The rules of this service level."""
        if self.is_fresh:
            seconds = self.value * _UNITS_S[(self.unit or "").lower()]
            for element in self.elements:
                yield Rule(target=element.rpartition(".")[2], kind="fresh", high=seconds)
