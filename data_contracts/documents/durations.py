"""Durations as people write them: 30s, 5m, 24h, 3d."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer


class _Unit(NamedTuple):
    symbol: str
    name: str
    seconds: int


_UNITS = (_Unit("d", "day", 86_400), _Unit("h", "hour", 3_600), _Unit("m", "minute", 60), _Unit("s", "second", 1))
_SECONDS = {unit.symbol: unit.seconds for unit in _UNITS}
_MAX_SECONDS = 36_500 * 86_400  # a century: a date before it can be computed
_PATTERN = r"([1-9]\d{0,8})\s*([smhd])"


def parse_duration(text: str) -> timedelta:
    """The duration that `text` states, such as `30m`.

    Raises:
        ValueError: `text` is not a whole number above 0 followed by s, m, h or d, or states more than a century.
    """
    match = re.fullmatch(_PATTERN, text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match is not None else 0
    if not 0 < seconds <= _MAX_SECONDS:
        raise ValueError("a duration is a whole number followed by s, m, h or d, such as 30m; at most 36500d")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """The duration in the largest unit that gives a whole number, such as `90m`; a fraction of a second is rounded."""
    seconds = max(round(duration.total_seconds()), 0)
    unit = next(unit for unit in _UNITS if seconds % unit.seconds == 0 and (seconds or unit.symbol == "s"))
    return f"{seconds // unit.seconds}{unit.symbol}"


def spell_duration(seconds: float) -> str:
    """The same for a sentence, with the unit's name: `4 days`, `90 minutes`. A fraction of a second stays."""
    unit = next((unit for unit in _UNITS if seconds % unit.seconds == 0), _UNITS[-1])
    count = seconds / unit.seconds
    return f"{count:g} {unit.name}{'' if count == 1 else 's'}"


def _validate(value: Any) -> Any:
    return value if isinstance(value, timedelta) else parse_duration(str(value))


Duration = Annotated[
    timedelta,
    BeforeValidator(_validate, json_schema_input_type=Annotated[str, Field(pattern=f"^{_PATTERN}$")]),
    PlainSerializer(format_duration),
]
