"""The service levels of a contract. Freshness is checked; the others are descriptive.

Source: Open Data Contract Standard v3.1, Service-Level Agreement.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from bloomery.data_contracts.odcs.base import CamelModel, Scalar, StableId
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

    id: StableId | None = None
    property_: Annotated[str, Field(alias="property")]
    value: Scalar
    value_ext: Scalar = None
    unit: str | None = None
    element: str | None = None
    column: str | None = None  # before v3.0.1, where `element` replaces it
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
        return tuple(part.strip() for part in (self.element or self.column or "").split(",") if part.strip())

    def concerns_only(self, tables: Sequence[str]) -> bool:
        """Whether the service level is about columns of `tables` alone."""
        prefixes = tuple(f"{table}." for table in tables)
        return bool(self.elements) and all(element.startswith(prefixes) for element in self.elements)

    def assess(self, table: str, types: Mapping[str, str]) -> Iterator[Rule | str]:
        """The rules of the service level for `table`, whose columns have logical `types`, and what is not checked."""
        title = " ".join(str(part) for part in (self.property_, self.value, self.unit) if part is not None)
        if not self.is_fresh:
            close = difflib.get_close_matches(self.property_.lower(), _FRESHNESS_PROPERTIES, n=1, cutoff=0.8)
            hint = (
                f"unknown property {self.property_!r}; did you mean {close[0]!r}?"
                if close
                else "only freshness is checked"
            )
            yield f"service level {title}: {hint}"
            return
        limitations = list(self._find_limitations())
        yield from (f"service level {title}: {limitation}" for limitation in limitations)
        stated = (self.element or self.column or "").strip()
        elements = (stated,) if stated in types else self.elements  # the name of a column may have a comma or a point
        for element in () if limitations else elements:
            name = element if element in types else element.removeprefix(f"{table}.")
            if name not in types:
                known_names = f"there is no column {element}; there are {', '.join(types)}"
                yield f"service level {title}: {known_names}"
            elif types[name] not in ("date", "timestamp"):
                limitation = f"column {name} is {types[name]}, but must be date or timestamp"
                yield f"service level {title}: {limitation}"
            else:
                value: Any = self.value
                yield Rule(target=name, kind="fresh", high=value * _UNITS_S[(self.unit or "").lower()])

    def _find_limitations(self) -> Iterator[str]:
        """Why no age can be compared with the value."""
        value: Any = self.value
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            yield f"{self.property_} must be a number above 0, not {value!r}"
        if (self.unit or "").lower() not in _UNITS_S:
            yield f"{self.property_} needs a unit: s, m (minutes), h, d, w or y, not {self.unit!r}"
        if not self.elements:
            yield f"{self.property_} needs element: the column of dates or times that has the newest value"
