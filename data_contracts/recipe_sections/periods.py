"""Periods of dated data: months, weeks, days and hours in UTC, with names of ISO 8601."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

PeriodLength = Literal["month", "week", "day", "hour"]

_SHAPES: dict[PeriodLength, tuple[str, str]] = {
    "month": (r"\d{4}-\d{2}", "%Y-%m"),
    "week": (r"\d{4}-W\d{2}", "%G-W%V"),
    "day": (r"\d{4}-\d{2}-\d{2}", "%Y-%m-%d"),
    "hour": (r"\d{4}-\d{2}-\d{2}T\d{2}", "%Y-%m-%dT%H"),
}
PERIOD_EXAMPLES: dict[PeriodLength, str] = {
    "month": "2019-02",
    "week": "2019-W07",
    "day": "2019-02-28",
    "hour": "2019-02-28T06",
}
PERIOD_PLACEHOLDER = re.compile(r"\{period:([^{}]+)\}")


def period_start(name: str, length: PeriodLength | None = None) -> datetime:
    """The start of the period with that name.

    Raises:
        ValueError: the name is not that of a period, or of a period of another length.
    """
    for kind, (shape, spelling) in _SHAPES.items():
        if (length is None or kind == length) and re.fullmatch(shape, name, flags=re.ASCII):
            with contextlib.suppress(ValueError):  # such as a month 13: raised below
                day = ("-1", "-%u") if kind == "week" else ("", "")
                return datetime.strptime(name + day[0], spelling + day[1]).replace(tzinfo=UTC)
    raise ValueError(f"{name!r} is not a {length or 'period'} such as {PERIOD_EXAMPLES[length or 'month']}")


def period_name(moment: datetime, length: PeriodLength) -> str:
    """The name of the period that contains `moment`."""
    return moment.strftime(_SHAPES[length][1])


def last_complete_period(moment: datetime, length: PeriodLength) -> str:
    """The name of the last period that has ended by `moment`."""
    start = period_start(period_name(moment.astimezone(UTC), length), length)
    return period_name(start - timedelta(seconds=1), length)


def period_range(first: str, last: str, length: PeriodLength) -> Iterator[str]:
    """The names of the periods from `first` to `last`, both included, oldest first.

    Raises:
        ValueError: one of them is not a period of that length, or the last is before the first.
    """
    moment, end = period_start(first, length), period_start(last, length)
    if end < moment:
        raise ValueError(f"{last} is before {first}")
    step = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}.get(length)
    while moment <= end:
        yield period_name(moment, length)
        moment = moment + step if step else (moment + timedelta(days=31)).replace(day=1)


def fill_period(text: str, period: str) -> str:
    """Replaces each placeholder such as `{period:%Y-%m}` in `text` by the formatted start of the period."""
    return PERIOD_PLACEHOLDER.sub(lambda match: period_start(period).strftime(match[1]), text)
