"""Columns as they came, read in the contract's types: which values fit, and what they are.

A value that does not fit is null afterwards, and a mask says so; the value as it came stays in the batch that was read.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.odcs.arrow_schema import max_exact_integer, value_range

_WHOLE = r"^[+-]?[0-9]{1,18}$"  # as many digits as int64 holds whatever they are
_REAL = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_NAIVE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?$"
# What follows microseconds is nothing, so that no digit is lost.
_TIME = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}(:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,6}0*)?)?)? ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?"
)
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
_TRUTHS = {"true": True, "false": False, "1": True, "0": False}


def cast_column(values: pa.Array, wanted: pa.DataType) -> tuple[pa.Array, pa.BooleanArray]:
    """`values` in the type `wanted`, and which of them do not fit and so are null.

    A null fits. Text is read: numbers in figures, true and false, dates as YYYY-MM-DD, times in ISO 8601, where a time
    without an offset is in UTC. `values` are of the family of `wanted`, or text, or without a type.
    """
    if pa.types.is_null(values.type):
        return values.cast(wanted), _nowhere(values)
    if values.type == wanted and not (pa.types.is_floating(wanted) or pa.types.is_temporal(wanted)):
        return values, _nowhere(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _read_text(values, wanted)
    if values.type == pa.float16():  # Arrow compares none
        values = values.cast(pa.float32())
    if pa.types.is_list(wanted):
        return values.cast(wanted, safe=False), _nowhere(values)  # whether each element fits is asked of the elements
    unfit = find_uncastable(values, wanted)
    kept = _without(values, unfit)
    return kept.cast(wanted, safe=not _may_round(values.type, wanted)), unfit


def find_uncastable(values: pa.Array, wanted: pa.DataType) -> pa.BooleanArray:
    """Which values `wanted` cannot hold as they are.

    A null is no misfit, but a NaN is, and so is a moment that lies in none of the years 1 to 9999.
    """
    kind = values.type
    if pa.types.is_null(kind):
        return _nowhere(values)
    if pa.types.is_temporal(wanted):
        read = values.cast(wanted, safe=False)
        beyond = pc.or_(pc.less(read, pa.scalar(_FIRST, wanted)), pc.greater(read, pa.scalar(_LAST, wanted)))
        lost = pc.not_equal(read.cast(kind, safe=False), values)
        return pc.fill_null(pc.or_(beyond, lost), False)
    if not (pa.types.is_integer(wanted) or pa.types.is_floating(wanted)):
        return _nowhere(values)
    low, high = value_range(wanted)
    if pa.types.is_floating(kind) and isinstance(low, int):
        # Both ends are powers of two, so they are exact as floats; the upper one is the first that does not fit.
        fits = pc.and_(pc.greater_equal(values, float(low)), pc.less(values, float(high + 1)))
        fits = pc.and_(fits, pc.equal(pc.floor(values), values))
    elif pa.types.is_floating(kind):
        # A 32-bit value cannot be beyond the range of any wider type; NaN and the infinities are.
        finite = pc.is_finite(values)
        fits = finite if kind.bit_width <= wanted.bit_width else pc.and_(finite, _between(values, low, high))
    else:
        exact = max_exact_integer(wanted) if pa.types.is_floating(wanted) else 0
        low, high = (-exact, exact) if exact else (low, high)
        held_low, held_high = value_range(kind)
        if held_low >= low and held_high <= high:
            return _nowhere(values)
        fits = _between(values, max(low, held_low), min(high, held_high))
    return pc.invert(pc.fill_null(fits, True))


def _between(values: pa.Array, low: float, high: float) -> pa.Array:
    return pc.and_(
        pc.greater_equal(values, pa.scalar(low, values.type)), pc.less_equal(values, pa.scalar(high, values.type))
    )


def _may_round(kind: pa.DataType, wanted: pa.DataType) -> bool:
    """Whether a value that fits may still lose digits: a number to float32, a time to microseconds."""
    return pa.types.is_floating(wanted) or pa.types.is_temporal(wanted) or pa.types.is_temporal(kind)


def _nowhere(values: pa.Array) -> pa.BooleanArray:
    return pa.array(np.zeros(len(values), dtype=bool))


def _without(values: pa.Array, mask: pa.Array) -> pa.Array:
    """`values` with a null wherever `mask` is true."""
    return pc.if_else(mask, pa.scalar(None, values.type), values) if mask.true_count else values


def _read_text(texts: pa.Array, wanted: pa.DataType) -> tuple[pa.Array, pa.BooleanArray]:
    if pa.types.is_string(wanted):
        return texts.cast(wanted), _nowhere(texts)
    trimmed = pc.utf8_trim_whitespace(texts)
    if pa.types.is_boolean(wanted):
        found = pc.index_in(pc.utf8_lower(trimmed), pa.array(list(_TRUTHS)))
        read = pa.array(list(_TRUTHS.values())).take(found)
    elif pa.types.is_integer(wanted):
        read = _whole_numbers(trimmed, wanted)
    elif pa.types.is_floating(wanted):
        numbers = _only(trimmed, _REAL).cast(pa.float64())
        read = _without(numbers, find_uncastable(numbers, wanted)).cast(wanted, safe=False)
    else:
        read = _moments(trimmed, wanted)
    return read, pc.and_(pc.is_valid(texts), pc.is_null(read))


def _only(texts: pa.Array, pattern: str) -> pa.Array:
    """The texts that match, without a leading plus sign; null elsewhere."""
    matching = pc.match_substring_regex(texts, pattern)
    return pc.utf8_ltrim(pc.if_else(matching, texts, pa.scalar(None, texts.type)), characters="+")


def _whole_numbers(texts: pa.Array, wanted: pa.DataType) -> pa.Array:
    read = _only(texts, _WHOLE).cast(pa.int64())
    rest = _only(_without(texts, pc.is_valid(read)), _REAL)
    if rest.null_count < len(rest):  # 12.0 and 1e3 are whole numbers too
        words = rest.dictionary_encode()
        numbers = pa.array([_int64(text) for text in words.dictionary.to_pylist()], pa.int64())
        read = pc.coalesce(read, numbers.take(words.indices))
    return _without(read, find_uncastable(read, wanted)).cast(wanted)


def _int64(text: str) -> int | None:
    """The whole number that a decimal one is, to the last digit."""
    number = Decimal(text)
    low, high = value_range(pa.int64())
    # Asked in this order, since a few characters can state a number of ten thousand digits.
    return int(number) if low <= number <= high and number == number.to_integral_value() else None


def _moments(texts: pa.Array, wanted: pa.DataType) -> pa.Array:
    """Dates or times; null where a text is none."""
    is_date = pa.types.is_date(wanted)
    plain = pc.match_substring_regex(texts, _DATE if is_date else _NAIVE)
    if pc.all(plain).as_py() is not False:  # the common case, at once
        try:
            read = texts.cast(wanted) if is_date else texts.cast(pa.timestamp("us")).cast(wanted)
            return _without(read, find_uncastable(read, wanted))
        except pa.ArrowInvalid:
            pass  # a 13th month among them
    words = texts.dictionary_encode()
    read = pa.array([(_date if is_date else _time)(text) for text in words.dictionary.to_pylist()], wanted)
    read = read.take(words.indices)
    return _without(read, find_uncastable(read, wanted))


def _date(text: str) -> date | None:
    if re.fullmatch(_DATE, text) is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _time(text: str) -> datetime | None:
    if re.fullmatch(_TIME, text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
