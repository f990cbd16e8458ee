"""How dates and times are written as text: the patterns of Java's DateTimeFormatter, which ODCS prescribes.

Supported are year, quarter, month, day, weekday, time, fraction, AM and PM, offset, quoted text and optional sections.
Two digits of a year mean 1969 to 2068, as in POSIX; a month or quarter without a day is its first day. A fraction may
have fewer digits than `S`; digits beyond microseconds are cut.

Source: java.time.format.DateTimeFormatter, Java SE 17; Open Data Contract Standard v3.1, logicalTypeOptions.format.
"""

from __future__ import annotations

import functools
import re
from datetime import UTC, date, datetime, timedelta, timezone

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH_NAMES = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_OFFSET = r"(?P<offset>Z|[+-]\d{2}(?::?\d{2})?)"
# Each supported letter with its numbers of repetitions, and the group that these match.
_PATTERNS: dict[str, str] = {
    **dict.fromkeys(("yyyy", "uuuu"), r"(?P<year>\d{4})"),
    **dict.fromkeys(("yy", "uu"), r"(?P<short_year>\d{2})"),
    "M": r"(?P<month>\d{1,2})",
    "MM": r"(?P<month>\d{2})",
    "MMM": rf"(?P<month_name>{'|'.join(_MONTHS)})",
    "Q": r"(?P<quarter>[1-4])",
    "QQQ": r"Q(?P<quarter>[1-4])",
    "MMMM": rf"(?P<month_name>{'|'.join(_MONTH_NAMES)})",
    "d": r"(?P<day>\d{1,2})",
    "dd": r"(?P<day>\d{2})",
    **dict.fromkeys(("E", "EE", "EEE"), r"(?:mon|tue|wed|thu|fri|sat|sun)"),
    "EEEE": r"(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)",
    "H": r"(?P<hour>\d{1,2})",
    "HH": r"(?P<hour>\d{2})",
    "h": r"(?P<half_hour>\d{1,2})",
    "hh": r"(?P<half_hour>\d{2})",
    "m": r"(?P<minute>\d{1,2})",
    "mm": r"(?P<minute>\d{2})",
    "s": r"(?P<second>\d{1,2})",
    "ss": r"(?P<second>\d{2})",
    **{"S" * digits: rf"(?P<fraction>\d{{1,{digits}}})" for digits in range(1, 10)},
    "a": r"(?P<half>am|pm)",
    **dict.fromkeys([letter * num for letter in "XxZ" for num in (1, 2, 3)], _OFFSET),
    **dict.fromkeys(("z", "VV"), r"(?P<zone>utc|gmt|z)"),
}
_TOKEN = re.compile(r"'(?P<quoted>(?:[^']|'')*)'|(?P<letters>([A-Za-z])\3*)|(?P<sign>.)", re.DOTALL)
_PIVOT = 69  # two digits of a year from here on belong to the 20th century


class DateFormat:
    """A parsed pattern. `has_time` where it has hours; `is_finer` where it has digits beyond microseconds."""

    def __init__(self, pattern: str) -> None:
        """Raises:
        ValueError: the pattern has an unsupported letter, or lacks month or year.
        """
        self.pattern = pattern
        self._regex = re.compile(_to_regex(pattern), re.IGNORECASE)
        groups = self._regex.groupindex
        for part, names in (("year", {"year", "short_year"}), ("month", {"month", "month_name", "quarter"})):
            if not names & set(groups):
                raise ValueError(f"the format {pattern!r} has no {part}")
        if "half_hour" in groups and "half" not in groups:
            raise ValueError(f"the format {pattern!r} has h, hours up to 12, but no a for AM and PM")
        self.has_time = "hour" in groups or "half_hour" in groups
        self.is_finer = "SSSSSSS" in pattern
        month = groups.get("month", groups.get("month_name", 0))
        if max(groups.get("year", 0), groups.get("short_year", 0)) < groups.get("day", 0) < month:
            raise ValueError(
                f"the format {pattern!r} has year, day, month in this order, so ISO 8601 could be mistaken"
            )

    def parse(self, text: str) -> datetime | None:
        """Returns the moment that `text` means, in UTC where it has no offset; None if it has another format.

        A text in ISO 8601 is accepted too, since no format can mean another moment by it.
        """
        match = self._regex.fullmatch(text)
        if match is not None:
            try:
                return _to_moment({name: part for name, part in match.groupdict().items() if part is not None})
            except (ValueError, OverflowError):
                return None
        return _parse_iso(text)

    def parse_date(self, text: str) -> date | None:
        """As `parse`, for a date: None for a time other than midnight."""
        moment = self.parse(text)
        return moment.date() if moment is not None and is_midnight(moment) else None


def is_midnight(moment: datetime) -> bool:
    """Whether the moment is the start of a day in UTC."""
    return (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0)


@functools.lru_cache(maxsize=256)
def parse_format(pattern: str) -> DateFormat:
    """Returns the format.

    Raises:
        ValueError: it is not supported.
    """
    return DateFormat(pattern)


def _to_regex(pattern: str) -> str:
    pieces: list[str] = []
    depth = 0
    names: set[str] = set()
    for token in _TOKEN.finditer(pattern):
        if token["quoted"] is not None:
            pieces.append(re.escape(token["quoted"].replace("''", "'") or "'"))
        elif token["letters"] is not None:
            pieces.append(_letters_regex(token["letters"], pattern, names))
        elif token["sign"] in "[]":
            depth += 1 if token["sign"] == "[" else -1
            pieces.append("(?:" if token["sign"] == "[" else ")?")
        else:
            pieces.append(re.escape(token["sign"]))
        if depth < 0:
            break
    if depth:
        raise ValueError(f"the format {pattern!r} has a bracket without its counterpart")
    return "".join(pieces)


def _letters_regex(letters: str, pattern: str, names: set[str]) -> str:
    if letters not in _PATTERNS:
        raise ValueError(
            f"the format {pattern!r} has {letters}, which is not supported; supported are {', '.join(_PATTERNS)}, "
            "other signs, 'quoted text' and [optional sections]"
        )
    regex = _PATTERNS[letters]
    name = re.match(r"\(\?P<(\w+)>", regex)
    if name is not None and name[1] in names:
        raise ValueError(f"the format {pattern!r} has {letters[0]} twice")
    if name is not None:
        names.add(name[1])
    return regex


def _to_moment(parts: dict[str, str]) -> datetime:
    """Raises ValueError for a moment that no calendar has."""
    year = int(parts.get("year") or _full_year(int(parts["short_year"])))
    if "quarter" in parts:
        month = 3 * int(parts["quarter"]) - 2
    else:
        month = int(parts["month"]) if "month" in parts else _MONTHS.index(parts["month_name"][:3].lower()) + 1
    hour = int(parts.get("hour", 0))
    if "half_hour" in parts:
        if not 1 <= int(parts["half_hour"]) <= 12:
            raise ValueError("hours with AM or PM go from 1 to 12")
        hour = int(parts["half_hour"]) % 12 + (12 if parts["half"].lower() == "pm" else 0)
    microsecond = int(parts.get("fraction", "0")[:6].ljust(6, "0"))
    zone = _zone(parts.get("offset", "Z"))
    minute, second = int(parts.get("minute", 0)), int(parts.get("second", 0))
    moment = datetime(year, month, int(parts.get("day", 1)), hour, minute, second, microsecond, zone)
    return moment.astimezone(UTC)


def _full_year(short_year: int) -> int:
    return short_year + (1900 if short_year >= _PIVOT else 2000)


def _zone(offset: str) -> timezone:
    if offset.upper() == "Z":
        return UTC
    digits = offset[1:].replace(":", "").ljust(4, "0")
    size = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return timezone(-size if offset[0] == "-" else size)


_ISO = re.compile(r"\d{4}-\d{2}-\d{2}(?:[ T]\d{2}:\d{2}(?::\d{2}(?:\.\d{1,9})?)?(?:Z|[+-]\d{2}(?::?\d{2})?)?)?")


def _parse_iso(text: str) -> datetime | None:
    if _ISO.fullmatch(text) is None:
        return None
    try:
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
