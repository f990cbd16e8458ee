"""Infers how the dates and times of a text column are written, as a pattern of Java's DateTimeFormatter.

The texts are first reduced to their shapes, of which a column has few; the pattern follows from the shapes and from the
largest number in each place. A second pass over the rows then counts the texts that the pattern does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import pyarrow as pa

from bloomery.data_contracts.odcs.columns.date_formats import DateFormat, is_midnight, parse_format

MAX_SHAPES = 40  # a column with more has no dates
_LAST_MONTH, _LAST_DAY, _MICROSECOND_DIGITS = 12, 31, 6
DAY_FIRST_NOTE = "no day is above 12, so day and month cannot be told apart: the day is assumed to come first"
MONTH_FIRST_NOTE = (
    "no day is above 12, so day and month cannot be told apart: the month is assumed to come first, since then the "
    "rows are in order of time"
)
TWO_DIGITS_NOTE = "years of two digits mean 1969 to 2068"
MIDNIGHT_NOTE = "all times are at midnight, so they are dates; set timestamp if later ones are not"
NO_DAY_NOTE = "a month or quarter stands for its first day"
CUT_NOTE = "digits beyond microseconds are cut"

_TEXT = re.compile(
    r"(?:(?P<weekday>[A-Za-z]{3,9})(?P<after_weekday>,? ))?"
    r"(?P<a>\d{1,4}|[A-Za-z]{3,9})(?P<first_sign>[-/.] ?|,? )(?P<b>\d{1,2}|[A-Za-z]{3,9})(?P<second_sign>[-/.] ?|,? )"
    r"(?P<c>\d{1,4})"
    r"(?:(?P<before_time>T|,? )(?P<hour>\d{1,2}):\d{2}(?P<seconds>:\d{2})?(?:(?P<point>[.,])(?P<digits>\d{1,9}))?"
    r"(?P<half> ?[AaPp][Mm])?(?P<zone> ?(?:Z|UTC|GMT|[+-]\d{2}(?::?\d{2})?))?)?"
)
_YEAR_AND_MONTH = re.compile(
    r"(?P<year>(?:19|20)\d{2})(?P<sign>[-/])(?P<month>\d{2})"
    r"|(?P<quarter_year>(?:19|20)\d{2})(?P<before_quarter>[- ]?)Q[1-4]|Q[1-4](?P<after_quarter>[- ])(?:19|20)\d{2}"
    r"|(?P<first_month>\d{1,2}|[A-Za-z]{3,9})(?P<second_sign>[-/ ])(?P<last_year>(?:19|20)\d{2})"
)
_MONTH = re.compile(r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)", re.IGNORECASE)


class DateShape(NamedTuple):
    """One way of writing dates. A place is `d` or `dd` for so many digits, `yyyy`, or `MMM` or `MMMM` for a name."""

    weekday: str
    places: tuple[str, str, str]
    signs: tuple[str, str]
    before_time: str
    hour: str
    has_seconds: bool
    point: str
    half: str
    zone: str

    @property
    def is_iso(self) -> bool:
        has_iso_time = self.hour == "dd" and not self.half and self.point != "," and self.zone in ("", "+")
        is_iso_date = self.places == ("yyyy", "dd", "dd") and self.signs == ("-", "-") and not self.weekday
        return is_iso_date and (not self.before_time or has_iso_time)


class InferredFormat(NamedTuple):
    """A pattern, and notes about what it assumes; `ambiguity` if the texts alone leave day and month open."""

    date_format: DateFormat
    notes: tuple[str, ...]
    ambiguity: tuple[str, ...] = ()


class DateShapes:
    """The shapes of a column's texts; `are_dates` until more than `max_others` of the texts are no dates.

    Of the numbers in each place it counts those above 12, which are no month, and above 31, which are no day.
    """

    def __init__(self, max_others: int) -> None:
        self.are_dates = True
        self._shapes: set[DateShape] = set()
        self._month_patterns: set[str] = set()
        self._max_others, self._num_others = max_others, 0
        self._num_no_month, self._num_no_day = [0, 0, 0], [0, 0, 0]
        self._num_digits = 0

    def add(self, texts: Sequence[str], counts: Sequence[int]) -> None:
        """Adds distinct texts, each with its number of rows."""
        for text, count in zip(texts, counts, strict=True):
            match = _TEXT.fullmatch(text.strip())
            shape = None if match is None else _shape_of(match)
            month_pattern = _month_pattern(text.strip()) if shape is None else None
            if month_pattern is not None:
                self._month_patterns.add(month_pattern)
            elif match is None or shape is None:
                self._num_others += count
                if self._num_others > self._max_others:
                    self.are_dates = False
                    return
            else:
                self._add_shape(shape, match, count)
        self.are_dates = len(self._shapes) <= MAX_SHAPES

    def _add_shape(self, shape: DateShape, match: re.Match[str], count: int) -> None:
        self._shapes.add(shape)
        self._num_digits = max(self._num_digits, len(match["digits"] or ""))
        for place, part in enumerate((match["a"], match["b"], match["c"])):
            number = int(part) if part.isdigit() and not shape.is_iso else 0
            self._num_no_month[place] += count if number > _LAST_MONTH else 0
            self._num_no_day[place] += count if number > _LAST_DAY else 0

    @property
    def _formatted_shapes(self) -> set[DateShape]:
        """The shapes that a format must fit: those of ISO 8601 only if there are no others, since it always fits."""
        return {shape for shape in self._shapes if not shape.is_iso} or self._shapes

    def candidates(self) -> list[InferredFormat]:
        """Returns the patterns that may fit: none if the texts are no dates, two if day and month may be swapped."""
        if self.are_dates and self._month_patterns:
            return [] if self._shapes else _month_formats(self._month_patterns)
        orders = self._orders() if self.are_dates and self._formatted_shapes else []
        date_parts = [self._date_part(order) for order in orders]
        time_part = self._time_part()
        if time_part is None or None in date_parts:
            return []
        notes: tuple[str, ...] = (
            (TWO_DIGITS_NOTE,) if any("yyyy" not in (date_part or "") for date_part in date_parts) else ()
        )
        notes += (CUT_NOTE,) if self._num_digits > _MICROSECOND_DIGITS else ()
        ambiguous = [(DAY_FIRST_NOTE,), (MONTH_FIRST_NOTE,)] if len(orders) == 2 else [()]
        return [
            InferredFormat(parse_format(f"{date_part}{time_part}"), notes, ambiguity)
            for date_part, ambiguity in zip(date_parts, ambiguous, strict=False)
        ]

    def _orders(self) -> list[str]:
        """Returns the possible orders of year, month and day; none if the shapes contradict each other."""
        places = {shape.places for shape in self._formatted_shapes}
        name_places = {place for shape_places in places for place in (0, 1) if shape_places[place].startswith("MMM")}
        years_in_front = {shape_places[0] == "yyyy" for shape_places in places}
        last_widths = {shape_places[2] for shape_places in places}
        is_no_month = [num > self._max_others for num in self._num_no_month]
        is_no_day = [num > self._max_others for num in self._num_no_day]
        if len(name_places) > 1 or len(years_in_front) > 1:
            return []
        if years_in_front == {True}:
            return [] if is_no_month[1] or "yyyy" in last_widths or name_places == {0} else ["yMd"]
        if last_widths not in ({"yyyy"}, {"dd"}):
            return []  # a year has two or four digits
        if name_places:
            return ["Mdy"] if name_places == {0} else ["dMy"]
        if is_no_day[0] and not is_no_day[2] and not is_no_month[1]:
            return ["yMd"]
        orders = (("dMy", 1, 0), ("Mdy", 0, 1))
        return [order for order, month, day in orders if not is_no_month[month] and not is_no_day[day]]

    def _date_part(self, order: str) -> str | None:
        """Returns the pattern of the date; None where signs or names differ from text to text."""
        signs = {shape.signs for shape in self._formatted_shapes}
        weekdays = {shape.weekday for shape in self._formatted_shapes}
        names = {place for shape in self._formatted_shapes for place in shape.places if place.startswith("MMM")}
        if len(signs) > 1 or len(weekdays) > 1:
            return None
        pieces = []
        for place, letter in enumerate(order):
            widths = {shape.places[place] for shape in self._formatted_shapes}
            if letter == "y":
                pieces.append("yyyy" if widths == {"yyyy"} else "yy" if widths == {"dd"} else "")
            elif names and letter == "M":
                # May is short and long, so it follows the other names.
                is_long = "MMMM" in names and "MMM" not in names
                pieces.append("MMMM" if is_long else "MMM" if "MMMM" not in names else "")
            else:
                pieces.append(letter * 2 if widths == {"dd"} else letter)
        if "" in pieces:
            return None
        first, second = signs.pop()
        return f"{weekdays.pop()}{pieces[0]}{first}{pieces[1]}{second}{pieces[2]}"

    def _time_part(self) -> str | None:
        """Returns the pattern of the time, with brackets around what some texts lack; None where texts differ more."""
        timed = [shape for shape in self._formatted_shapes if shape.before_time]
        if not timed:
            return ""
        signs, halves = {shape.before_time for shape in timed}, {bool(shape.half) for shape in timed}
        points = {shape.point for shape in timed if shape.point}
        spaces = {shape.zone.startswith(" ") for shape in timed if shape.zone}
        half_spaces = {shape.half.startswith(" ") for shape in timed if shape.half}
        kinds = {"VV" if shape.zone.strip() in ("UTC", "GMT") else "XXX" for shape in timed if shape.zone}
        if any(len(variants) > 1 for variants in (signs, halves, points, spaces, half_spaces, kinds)):
            return None
        letter = "h" if halves == {True} else "H"
        hour = letter * 2 if {shape.hour for shape in timed} == {"dd"} else letter
        sign = signs.pop().replace("T", "'T'")
        seconds = _optional(":ss", [shape.has_seconds for shape in timed])
        fraction = _optional(f"{''.join(points)}{'S' * self._num_digits}", [bool(shape.point) for shape in timed])
        half = "" if letter == "H" else f"{' ' if half_spaces == {True} else ''}a"
        zone = _optional(f"{' ' if spaces == {True} else ''}{''.join(kinds)}", [bool(shape.zone) for shape in timed])
        time_part = f"{sign}{hour}:mm{seconds}{fraction}{half}{zone}"
        return _optional(time_part, [bool(shape.before_time) for shape in self._formatted_shapes])


def _month_pattern(text: str) -> str | None:
    """Returns the pattern of a month with its year; None for another text."""
    match = _YEAR_AND_MONTH.fullmatch(text)
    if match is None:
        return None
    if match["year"]:
        return f"yyyy{match['sign']}MM" if 1 <= int(match["month"]) <= _LAST_MONTH else None
    if match["quarter_year"]:
        return f"yyyy{match['before_quarter']}QQQ"
    if match["after_quarter"]:
        return f"QQQ{match['after_quarter']}yyyy"
    month, place = match["first_month"], _place_of(match["first_month"])
    if place == "" or (month.isdigit() and not 1 <= int(month) <= _LAST_MONTH):
        return None
    return f"{place.replace('d', 'M')}{match['second_sign']}yyyy"


def _month_formats(patterns: set[str]) -> list[InferredFormat]:
    """Returns the pattern that fits all; none if there is none. May is short and long, and a digit fits one or two."""
    plain_patterns = {pattern.replace("MMM may", "MMM") for pattern in patterns}
    if len(plain_patterns) > 1:
        plain_patterns -= {pattern.replace("MMM may", "MMM") for pattern in patterns if "may" in pattern}
        plain_patterns -= {"MM/yyyy"} if "M/yyyy" in plain_patterns else set()
    if len(plain_patterns) != 1:
        return []
    return [InferredFormat(parse_format(plain_patterns.pop()), (NO_DAY_NOTE,))]


def _optional(piece: str, presence: list[bool]) -> str:
    return piece if all(presence) else f"[{piece}]" if any(presence) else ""


def _shape_of(match: re.Match[str]) -> DateShape | None:
    """Returns the shape of a text that looks like a date; None where a name is no month."""
    places = [_place_of(match[name]) for name in ("a", "b", "c")]
    weekday = match["weekday"]
    if "" in places or (places[0].startswith("MMM") and places[1].startswith("MMM")):
        return None
    return DateShape(
        weekday="" if weekday is None else f"{'EEE' if len(weekday) == 3 else 'EEEE'}{match['after_weekday']}",
        places=(places[0], places[1], places[2]),
        signs=(match["first_sign"], match["second_sign"]),
        before_time=match["before_time"] or "",
        hour="" if match["hour"] is None else "d" * len(match["hour"]),
        has_seconds=match["seconds"] is not None,
        point=match["point"] or "",
        half="" if match["half"] is None else f"{match['half'][:-2]}a",
        zone=_zone_of(match["zone"] or ""),
    )


def _place_of(part: str) -> str:
    if part.isdigit():
        return {1: "d", 2: "dd", 4: "yyyy"}.get(len(part), "")
    if _MONTH.match(part) is None:
        return ""
    if len(part) == 3:
        return "MMM" if part.lower() != "may" else "MMM may"
    return "MMMM"


def _zone_of(zone: str) -> str:
    text = zone.strip()
    return zone if text in ("", "UTC", "GMT") else f"{zone[: len(zone) - len(text)]}+"


class FormatCounter:
    """Counts, in a second pass over the rows, the texts that a format does not fit, and how often time goes back."""

    def __init__(self, inferred: InferredFormat) -> None:
        self.inferred = inferred
        self.num_invalid = self.num_descents = 0
        self.are_midnights = True
        self._last: datetime | None = None

    def add(self, texts: pa.Array) -> None:
        """Adds texts in the order of the rows; nulls do not count."""
        encoded = texts.drop_null().dictionary_encode()
        moments = [self.inferred.date_format.parse(text.strip()) for text in encoded.dictionary.to_pylist()]
        self.are_midnights = self.are_midnights and all(moment is None or is_midnight(moment) for moment in moments)
        for index in encoded.indices.to_pylist():
            moment = moments[index]
            if moment is None:
                self.num_invalid += 1
                continue
            self.num_descents += self._last is not None and moment < self._last
            self._last = moment


def choose_format(counters: Sequence[FormatCounter]) -> FormatCounter:
    """Returns the format that fits the most texts; of equal ones, that by which time goes back in the fewest rows.

    Where one fits more texts than another, it is not ambiguous.
    """
    best = min(counters, key=lambda counter: (counter.num_invalid, counter.num_descents))
    if len({counter.num_invalid for counter in counters}) > 1:
        best.inferred = best.inferred._replace(ambiguity=())
    return best
