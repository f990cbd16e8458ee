"""Spans of time as people write them: 30s, 5m, 24h, 3d."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, PlainSerializer

_SECONDS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_FORM = r"([1-9]\d{0,8})\s*([smhd])"


def _read(stated: Any) -> Any:
    if isinstance(stated, timedelta):
        return stated
    found = re.fullmatch(_FORM, str(stated))
    if found is None:
        raise ValueError("a span of time is a whole number above 0 with s, m, h or d behind it, such as 30m")
    return timedelta(seconds=int(found[1]) * _SECONDS[found[2]])


def format_duration(span: timedelta) -> str:
    """In the largest unit that leaves nothing over, as it would be written."""
    seconds = max(round(span.total_seconds()), 0)
    unit = next(unit for unit, size in _SECONDS.items() if seconds % size == 0 and (seconds or unit == "s"))
    return f"{seconds // _SECONDS[unit]}{unit}"


Duration = Annotated[
    timedelta,
    BeforeValidator(_read, json_schema_input_type=Annotated[str, Field(pattern=f"^{_FORM}$")]),
    PlainSerializer(format_duration),
]
