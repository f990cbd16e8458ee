"""Periods of dated data: months, weeks, days and hours, in UTC, named as in ISO 8601."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Literal

Every = Literal["month", "week", "day", "hour"]

_SHAPES: dict[Every, tuple[str, str]] = {
    "month": (r"\d{4}-\d{2}", "%Y-%m"),
    "week": (r"\d{4}-W\d{2}", "%G-W%V"),
    "day": (r"\d{4}-\d{2}-\d{2}", "%Y-%m-%d"),
    "hour": (r"\d{4}-\d{2}-\d{2}T\d{2}", "%Y-%m-%dT%H"),
}
EXAMPLES: dict[Every, str] = {"month": "2019-02", "week": "2019-W07", "day": "2019-02-28", "hour": "2019-02-28T06"}
PLACEHOLDER = re.compile(r"\{period:([^{}]+)\}")


def start_of(name: str, every: Every | None = None) -> datetime:
    """When the period of that name begins.

    Raises:
        ValueError: it is the name of no period, or of none of that length.
    """
    for kind, (shape, spelling) in _SHAPES.items():
        if (every is None or kind == every) and re.fullmatch(shape, name, flags=re.ASCII):
            with contextlib.suppress(ValueError):  # such as a month 13, told below
                day = ("-1", "-%u") if kind == "week" else ("", "")
                return datetime.strptime(name + day[0], spelling + day[1]).replace(tzinfo=UTC)
    raise ValueError(f"{name!r} is no {every or 'period'}, such as {EXAMPLES[every or 'month']}")


def name_of(moment: datetime, every: Every) -> str:
    """The name of the period that `moment` lies in."""
    return moment.strftime(_SHAPES[every][1])


def last_whole(moment: datetime, every: Every) -> str:
    """The newest period that has ended by `moment`."""
    begun = start_of(name_of(moment.astimezone(UTC), every), every)
    return name_of(begun - timedelta(seconds=1), every)


def between(first: str, last: str, every: Every) -> Iterator[str]:
    """The names of all periods from `first` to `last`, both counted, oldest first.

    Raises:
        ValueError: one of them is no period of that length, or the last lies before the first.
    """
    moment, end = start_of(first, every), start_of(last, every)
    if end < moment:
        raise ValueError(f"{last} lies before {first}")
    step = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}.get(every)
    while moment <= end:
        yield name_of(moment, every)
        moment = moment + step if step else (moment + timedelta(days=31)).replace(day=1)


def dated(text: str, period: str) -> str:
    """`text` with the start of the period in each place that asks for it, as in `{period:%Y-%m}`."""
    return PLACEHOLDER.sub(lambda found: start_of(period).strftime(found[1]), text)
