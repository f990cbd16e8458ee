"""Casts raw columns to the contract's types.

A value that does not fit becomes null and is marked in a mask; the raw batch keeps the original value.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.odcs.columns.arrow_schema import max_exact_integer, value_range
from bloomery.data_contracts.odcs.columns.date_formats import DateFormat, parse_format

_INTEGER = r"^[+-]?[0-9]{1,18}$"  # int64 holds every number of so many digits
_DECIMAL = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?$"
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$"
_COMMON_TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?$"
# After microseconds only zeros may follow, so that no digit is lost.
_TIME = (
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}(:[0-9]{2}(:[0-9]{2}([.,][0-9]{1,6}0*)?)?)? ?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?"
)
_FIRST, _LAST = datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def cast_column(
    values: pa.Array, target: pa.DataType, date_format: str | None = None
) -> tuple[pa.Array, pa.BooleanArray]:
    """Casts `values` to `target`. Returns them and a mask of those that do not fit, which are null. A null fits.

    Text is parsed: decimal numbers, true and false, and dates and times as `date_format` says; without one, dates as
    YYYY-MM-DD and times in ISO 8601, in UTC if they have no offset. A format with more than six digits of a fraction
    also cuts the nanoseconds of typed times. `values` have a type that is compatible with `target`, text, or the null
    type.
    """
    if pa.types.is_null(values.type):
        return values.cast(target), _all_false(values)
    if date_format is not None and pa.types.is_temporal(target):
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            return _parse_formatted(values, target, parse_format(date_format))
        if parse_format(date_format).is_finer and pa.types.is_timestamp(values.type):
            values = values.cast(pa.timestamp("us", values.type.tz), safe=False)
    if values.type == target and not (pa.types.is_floating(target) or pa.types.is_temporal(target)):
        return values, _all_false(values)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _parse_text(values, target)
    if values.type == pa.float16():  # Arrow cannot compare float16
        values = values.cast(pa.float32())
    if pa.types.is_list(target):
        return values.cast(target, safe=False), _all_false(values)  # the elements are checked separately
    unfit = find_uncastable(values, target)
    valid = _null_where(values, unfit)
    return valid.cast(target, safe=not _may_round(values.type, target)), unfit


def find_uncastable(values: pa.Array, target: pa.DataType) -> pa.BooleanArray:
    """True for each value that `target` cannot hold, for NaN, and for times outside of the years 1 to 9999.

    It is false for null.
    """
    kind = values.type
    if pa.types.is_null(kind):
        return _all_false(values)
    if pa.types.is_temporal(target):
        cast = values.cast(target, safe=False)
        beyond = pc.or_(pc.less(cast, pa.scalar(_FIRST, target)), pc.greater(cast, pa.scalar(_LAST, target)))
        changed = pc.not_equal(cast.cast(kind, safe=False), values)
        return pc.fill_null(pc.or_(beyond, changed), False)
    if not (pa.types.is_integer(target) or pa.types.is_floating(target)):
        return _all_false(values)
    low, high = value_range(target)
    if pa.types.is_floating(kind) and isinstance(low, int):
        # Both limits are powers of two, so they are exact as floats; the upper one is the first that does not fit.
        fits = pc.and_(pc.greater_equal(values, float(low)), pc.less(values, float(high + 1)))
        fits = pc.and_(fits, pc.equal(pc.floor(values), values))
    elif pa.types.is_floating(kind):
        # A finite 32-bit value is within the range of every wider type.
        finite = pc.is_finite(values)
        fits = finite if kind.bit_width <= target.bit_width else pc.and_(finite, _between(values, low, high))
    else:
        exact = max_exact_integer(target) if pa.types.is_floating(target) else 0
        low, high = (-exact, exact) if exact else (low, high)
        kind_low, kind_high = value_range(kind)
        if kind_low >= low and kind_high <= high:
            return _all_false(values)
        fits = _between(values, max(low, kind_low), min(high, kind_high))
    return pc.invert(pc.fill_null(fits, True))


def _between(values: pa.Array, low: float, high: float) -> pa.Array:
    return pc.and_(
        pc.greater_equal(values, pa.scalar(low, values.type)), pc.less_equal(values, pa.scalar(high, values.type))
    )


def _may_round(kind: pa.DataType, target: pa.DataType) -> bool:
    """True if the cast can round values that are in range, such as float64 to float32 or ns to us."""
    return pa.types.is_floating(target) or pa.types.is_temporal(target) or pa.types.is_temporal(kind)


def _all_false(values: pa.Array) -> pa.BooleanArray:
    return pa.array(np.zeros(len(values), dtype=bool))


def _null_where(values: pa.Array, mask: pa.Array) -> pa.Array:
    """`values` with a null wherever `mask` is true."""
    return pc.if_else(mask, pa.scalar(None, values.type), values) if mask.true_count else values


def _parse_text(texts: pa.Array, target: pa.DataType) -> tuple[pa.Array, pa.BooleanArray]:
    if pa.types.is_string(target):
        return texts.cast(target), _all_false(texts)
    trimmed = pc.utf8_trim_whitespace(texts)
    if pa.types.is_boolean(target):
        indices = pc.index_in(pc.utf8_lower(trimmed), pa.array(list(_BOOLEANS)))
        cast = pa.array(list(_BOOLEANS.values())).take(indices)
    elif pa.types.is_integer(target):
        cast = _parse_integers(trimmed, target)
    elif pa.types.is_floating(target):
        numbers = _matching_numbers(trimmed, _DECIMAL).cast(pa.float64())
        cast = _null_where(numbers, find_uncastable(numbers, target)).cast(target, safe=False)
    else:
        cast = _parse_moments(trimmed, target)
    return cast, pc.and_(pc.is_valid(texts), pc.is_null(cast))


def _matching_numbers(texts: pa.Array, pattern: str) -> pa.Array:
    """The texts that match `pattern`, without a leading plus sign; the others are null."""
    matching = pc.match_substring_regex(texts, pattern)
    return pc.utf8_ltrim(pc.if_else(matching, texts, pa.scalar(None, texts.type)), characters="+")


def _parse_integers(texts: pa.Array, target: pa.DataType) -> pa.Array:
    integers = _matching_numbers(texts, _INTEGER).cast(pa.int64())
    decimals = _matching_numbers(_null_where(texts, pc.is_valid(integers)), _DECIMAL)
    if decimals.null_count < len(decimals):  # 12.0 and 1e3 are integers too
        encoded = decimals.dictionary_encode()
        numbers = pa.array([_parse_int64(text) for text in encoded.dictionary.to_pylist()], pa.int64())
        integers = pc.coalesce(integers, numbers.take(encoded.indices))
    return _null_where(integers, find_uncastable(integers, target)).cast(target)


def _parse_int64(text: str) -> int | None:
    """The exact integer value of a decimal number; None if it is not an integer of 64 bits."""
    number = Decimal(text)
    low, high = value_range(pa.int64())
    # The range is checked first, since a few characters can mean a number of ten thousand digits.
    return int(number) if low <= number <= high and number == number.to_integral_value() else None


def _parse_moments(texts: pa.Array, target: pa.DataType) -> pa.Array:
    """The texts as dates or times; null where a text is invalid."""
    is_date = pa.types.is_date(target)
    has_common_format = pc.match_substring_regex(texts, _DATE if is_date else _COMMON_TIME)
    if pc.all(has_common_format).as_py() is not False:  # the common case: one cast of the column
        try:
            moments = texts.cast(target) if is_date else texts.cast(pa.timestamp("us")).cast(target)
            return _null_where(moments, find_uncastable(moments, target))
        except pa.ArrowInvalid:
            pass  # a value such as month 13
    encoded = texts.dictionary_encode()
    parse = _parse_date if is_date else _parse_time
    moments = pa.array([parse(text) for text in encoded.dictionary.to_pylist()], target).take(encoded.indices)
    return _null_where(moments, find_uncastable(moments, target))


def _parse_formatted(texts: pa.Array, target: pa.DataType, date_format: DateFormat) -> tuple[pa.Array, pa.BooleanArray]:
    encoded = pc.utf8_trim_whitespace(texts).dictionary_encode()
    parse = date_format.parse_date if pa.types.is_date(target) else date_format.parse
    distinct = [None if text is None else parse(text) for text in encoded.dictionary.to_pylist()]
    moments = pa.array(distinct, target).take(encoded.indices)
    moments = _null_where(moments, find_uncastable(moments, target))
    return moments, pc.and_(pc.is_valid(texts), pc.is_null(moments))


def _parse_date(text: str) -> date | None:
    if re.fullmatch(_DATE, text) is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _parse_time(text: str) -> datetime | None:
    if re.fullmatch(_TIME, text) is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
