"""Casts columns to the contract's types, mostly from text."""

from __future__ import annotations

import datetime as dt
import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.validation.casting import cast_column, find_uncastable
from tests.examples import examples

TIME = pa.timestamp("us", "UTC")
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32()]
TYPES = [*INTEGERS, pa.float32(), pa.float64(), pa.bool_(), pa.date32(), TIME]
UNIX = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: dt.timezone(dt.timedelta(minutes=minutes)))
TIMES = st.datetimes(dt.datetime(2, 1, 1), dt.datetime(9998, 12, 31), timezones=OFFSETS)


def cast_text(text: str | None, kind: pa.DataType) -> tuple[Any, bool]:
    """The value of one text, and whether it is uncastable."""
    values, unfit = cast_column(pa.array([text], pa.string()), kind)
    assert values.type == kind
    return values[0].as_py(), unfit[0].as_py()


def is_castable(text: str, kind: pa.DataType) -> bool:
    return cast_text(text, kind)[0] is not None


def values_of(kind: pa.DataType) -> st.SearchStrategy[Any]:
    """Values of an Arrow type, each with its text."""
    if pa.types.is_integer(kind):
        signed = pa.types.is_signed_integer(kind)
        low, high = (
            (-(2 ** (kind.bit_width - 1)), 2 ** (kind.bit_width - 1) - 1) if signed else (0, 2**kind.bit_width - 1)
        )
        return (st.sampled_from([low, high]) | st.integers(low, high)).map(lambda value: (value, str(value)))
    if pa.types.is_floating(kind):
        reals = st.floats(allow_nan=False, allow_infinity=False, width=kind.bit_width)
        return reals.map(lambda value: (value, repr(value)))
    if pa.types.is_boolean(kind):
        return st.booleans().map(lambda value: (value, str(value)))
    if pa.types.is_date(kind):
        return st.dates().map(lambda value: (value, value.isoformat()))
    separators = st.sampled_from(["T", " "])
    return st.tuples(TIMES, separators).map(lambda pair: (pair[0], pair[0].isoformat(sep=pair[1])))


@pytest.mark.parametrize("kind", TYPES, ids=str)
@settings(deadline=None, max_examples=examples(100))
@given(data=st.data())
def test_the_text_of_a_value_is_cast_to_the_value(kind, data):
    value, text = data.draw(values_of(kind))
    around = data.draw(st.sampled_from(["", " ", "\t", "\n", "\u00a0"]))
    result, unfit = cast_text(around + text + around, kind)
    assert (result, unfit) == (value, False)
    if isinstance(value, float):
        assert math.copysign(1, result) == math.copysign(1, value)


LIKELY = st.sampled_from("0123456789+-.eE:T ,_xnaifZ/\u0661\u00b2\u2212\x00")
NEARLY = st.text(LIKELY, max_size=12) | st.text(max_size=6) | st.from_regex(r"\A\d{4}-\d{2}-\d{2}[T ]?[\d:.,]*\Z")


@pytest.mark.parametrize("kind", TYPES, ids=str)
@settings(deadline=None, max_examples=examples(100))
@given(texts=st.lists(st.none() | NEARLY, max_size=8))
def test_every_text_is_cast_or_marked_independent_of_the_other_rows(kind, texts):
    together, unfit = cast_column(pa.array(texts, pa.string()), kind)
    assert [(value.as_py(), mask.as_py()) for value, mask in zip(together, unfit, strict=True)] == [
        cast_text(text, kind) for text in texts
    ]
    assert unfit.to_pylist() == [
        text is not None and value is None for text, value in zip(texts, together.to_pylist(), strict=True)
    ]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000),
        ("+5", 5),
        ("-0", 0),
        ("12.0", 12),
        ("1.", 1),
        (" 7 ", 7),
        ("0" * 30 + "7", 7),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775807.0", 2**63 - 1),  # not a float64
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_an_integer_is_parsed_exactly(text, value):
    assert cast_text(text, pa.int64()) == (value, False)


INVALID_INTEGERS = [
    "",
    " ",
    "1_000",
    "0x10",
    "12.5",
    "1,5",
    "nan",
    "inf",
    "--1",
    "+-1",
    "+",
    "- 1",
    ".",
    "1e",
    "1e400",
    "1e-400",
]
INVALID_INTEGERS += [
    "9223372036854775808",
    "-9223372036854775809",
    "1" * 400,
    "1" * 5000,
    "0e99999",
    "\u0661",
    "5\x00",
    "\u00b2",
]


@pytest.mark.parametrize("text", INVALID_INTEGERS, ids=lambda text: repr(text[:12]))
def test_an_invalid_integer_is_marked(text):
    assert cast_text(text, pa.int64()) == (None, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1e3),
        ("+.5E+3", 500.0),
        ("-0", -0.0),
        ("1.", 1.0),
        ("1e-400", 0.0),
        ("1" * 200 + "e-199", 1.1111111111111111),
    ],
)
def test_a_number_is_parsed(text, value):
    assert cast_text(text, pa.float64()) == (value, False)


@pytest.mark.parametrize(
    "text", ["", "nan", "NaN", "inf", "-inf", "Infinity", "1e400", "1_0", "0x1p3", "1,5", "1.7976931348623159e308"]
)
def test_an_invalid_or_infinite_number_is_marked(text):
    assert cast_text(text, pa.float64()) == (None, True)


def test_a_number_beyond_float32_is_marked():
    assert is_castable("1e39", pa.float64())
    assert not is_castable("1e39", pa.float32())


@pytest.mark.parametrize(
    "text",
    ["2023-02-30", "2023-13-01", "0000-01-01", "10000-01-01", "2023-2-3", "20230203", "2023-W01-1", "2023-02-03T00:00"],
)
def test_an_invalid_date_is_marked(text):
    assert cast_text(text, pa.date32()) == (None, True)


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("2023-02-28 12:00", "2023-02-28T12:00:00"),
        ("2023-02-28T12:00:00.5", "2023-02-28T12:00:00.500000"),
        ("2023-02-28T12:00:00.123456000", "2023-02-28T12:00:00.123456"),
        ("2023-02-28T12:00:00Z", "2023-02-28T12:00:00"),
        ("2023-02-28T12:00:00+02:00", "2023-02-28T10:00:00"),
        ("2023-02-28 12:00:00-0530", "2023-02-28T17:30:00"),
    ],
)
def test_a_time_is_parsed_in_utc(text, utc):
    assert cast_text(text, TIME) == (dt.datetime.fromisoformat(utc).replace(tzinfo=dt.UTC), False)


@pytest.mark.parametrize(
    "text",
    [
        "2023-02-28T12:00:60",  # a leap second
        "2023-02-28T24:00:00",
        "2023-02-30T12:00:00",
        "2023-02-28T12:00:00.1234567",  # more digits than microseconds
        "2023-02-28T12:00:00+25:00",
        "0000-01-01T00:00:00",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "2023-02-28",
        "2023-02-28T",
        "1677456000",
    ],
)
def test_an_invalid_time_is_marked(text):
    assert cast_text(text, TIME) == (None, True)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("FALSE", False), (" 1 ", True), ("0", False)])
def test_true_and_false_are_parsed(text, value):
    assert cast_text(text, pa.bool_()) == (value, False)


@pytest.mark.parametrize("text", ["yes", "t", "2", "01", "1.0", ""])
def test_an_invalid_boolean_is_marked(text):
    assert cast_text(text, pa.bool_()) == (None, True)


def test_text_is_unchanged():
    assert cast_text(" a ", pa.string()) == (" a ", False)


@pytest.mark.parametrize(
    ("values", "kind", "fitting"),
    [
        (pa.array([1.0, 1.5, math.nan, math.inf, 2.0**63, -(2.0**63), None]), pa.int64(), [0, 5, 6]),
        (pa.array([127.0, 128.0, -128.0, -129.0]), pa.int8(), [0, 2]),
        (pa.array([1.5, 2.0], pa.float16()), pa.int8(), [1]),
        (pa.array([2**63, 5], pa.uint64()), pa.int64(), [1]),
        (pa.array([2**53, 2**53 + 1]), pa.float64(), [0]),
        (pa.array([2**24, 2**24 + 1]), pa.float32(), [0]),
        (pa.array([1e300, 0.1]), pa.float32(), [1]),
        (pa.array([math.nan, math.inf, 0.1], pa.float32()), pa.float64(), [2]),
        (pa.array([1000, 1001], pa.timestamp("ns")), TIME, [0]),
        (pa.array([2**62, 2**40, 0], pa.timestamp("s")), TIME, [2]),
        (pa.array([2**62, 0], TIME), TIME, [1]),
        (pa.array([86_400_000, 1], pa.date64()), pa.date32(), [0]),
        (pa.array([2**31 - 1, -(2**31), 0], pa.int32()).cast(pa.date32()), pa.date32(), [2]),
    ],
    ids=lambda value: str(getattr(value, "type", value)),
)
def test_a_typed_value_fits_or_is_null_and_marked(values, kind, fitting):
    cast_values, unfit = cast_column(values, kind)
    positions = list(range(len(values)))
    assert [position for position in positions if not unfit[position].as_py()] == fitting
    assert [position for position in positions if not unfit[position].as_py() and values[position].is_valid] == [
        position for position in positions if cast_values[position].is_valid
    ]
    assert unfit == find_uncastable(values.cast(pa.float32()) if values.type == pa.float16() else values, kind)
    cast_values.to_pylist()  # Python has a value for each


def test_a_time_in_another_zone_is_the_same_moment():
    moments = pa.array([UNIX], pa.timestamp("us", "Asia/Kolkata"))
    assert cast_column(moments, TIME)[0].to_pylist() == [UNIX]
