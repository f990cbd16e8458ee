"""The formats of dates and times that a contract may set."""

from __future__ import annotations

import datetime as dt

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.data_contracts.odcs.columns.date_formats import parse_format
from bloomery.data_contracts.validation.casting import cast_column


@pytest.mark.parametrize(
    ("pattern", "text", "utc"),
    [
        ("dd/MM/yyyy", "28/03/2021", "2021-03-28T00:00:00"),
        ("M/d/yyyy", "3/8/2021", "2021-03-08T00:00:00"),
        ("dd.MM.yy", "28.03.68", "2068-03-28T00:00:00"),
        ("dd.MM.yy", "28.03.69", "1969-03-28T00:00:00"),
        ("d-MMM-yyyy", "8-Mar-2021", "2021-03-08T00:00:00"),
        ("MMMM d, yyyy", "March 8, 2021", "2021-03-08T00:00:00"),
        ("dd/MM/yyyy h:mm a", "28/03/2021 12:05 am", "2021-03-28T00:05:00"),
        ("dd/MM/yyyy h:mm a", "28/03/2021 1:05 PM", "2021-03-28T13:05:00"),
        ("yyyy-MM-dd HH:mm:ss VV", "2021-03-28 01:30:00 UTC", "2021-03-28T01:30:00"),
        ("yyyy-MM-dd'T'HH:mm:ss[.SSSSSSSSS][XXX]", "2021-03-28T01:30:00.123456789+01:00", "2021-03-28T00:30:00.123456"),
        ("yyyy-MM-dd'T'HH:mm:ss[.SSSSSSSSS][XXX]", "2021-03-28T01:30:00", "2021-03-28T01:30:00"),
        ("yyyyQQQ", "2021Q3", "2021-07-01T00:00:00"),
        ("yyyy-MM", "2021-03", "2021-03-01T00:00:00"),
        ("EEE, dd MMM yyyy HH:mm:ss z", "Sun, 28 Mar 2021 10:00:00 GMT", "2021-03-28T10:00:00"),
        ("dd/MM/yyyy", "2021-03-28", "2021-03-28T00:00:00"),  # ISO 8601 cannot be mistaken
    ],
)
def test_a_text_is_parsed(pattern: str, text: str, utc: str) -> None:
    assert parse_format(pattern).parse(text) == dt.datetime.fromisoformat(utc).replace(tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("dd/MM/yyyy", "03/28/2021"),
        ("dd/MM/yyyy", "31/02/2021"),
        ("dd/MM/yyyy", "28-03-2021"),
        ("dd/MM/yyyy h:mm a", "28/03/2021 13:05 PM"),
        ("yyyy-MM-dd HH:mm:ss", "2021-03-28 24:00:00"),
        ("dd/MM/yyyy XXX", "01/01/0001 +14:00"),
    ],
)
def test_another_text_is_no_moment(pattern: str, text: str) -> None:
    assert parse_format(pattern).parse(text) is None


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("dd/MM", "has no year"),
        ("yyyy", "has no month"),
        ("ww yyyy-MM-dd", "has ww, which is not supported"),
        ("hh:mm dd/MM/yyyy", "no a for AM and PM"),
        ("dd/MM/yyyy [HH:mm", "a bracket without its counterpart"),
        ("dd/dd/MM/yyyy", "has d twice"),
        ("yyyy-dd-MM", "ISO 8601 could be mistaken"),
    ],
)
def test_an_unsupported_format_is_reported(pattern: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_format(pattern)


@given(st.dates(dt.date(1000, 1, 1)))
def test_every_date_is_read_as_it_was_written(day: dt.date) -> None:
    for pattern in ("%d/%m/%Y", "%m-%d-%Y", "%d %b %Y"):
        java = pattern.replace("%d", "dd").replace("%m", "MM").replace("%Y", "yyyy").replace("%b", "MMM")
        assert parse_format(java).parse_date(day.strftime(pattern)) == day


def test_a_column_is_cast_by_its_format() -> None:
    texts = pa.array([" 28/03/2021", "31/02/2021", None, "28/03/2021 10:00"])
    days, unfit = cast_column(texts, pa.date32(), "dd/MM/yyyy")
    assert days.to_pylist() == [dt.date(2021, 3, 28), None, None, None]
    assert unfit.to_pylist() == [False, True, False, True]


def test_nanoseconds_of_typed_times_are_cut_where_the_format_allows_them() -> None:
    times = pa.array([1001, None], pa.timestamp("ns", "Europe/Berlin"))
    target = pa.timestamp("us", "UTC")
    assert cast_column(times, target)[1].to_pylist() == [True, False]
    moments, unfit = cast_column(times, target, "yyyy-MM-dd'T'HH:mm:ss.SSSSSSSSS")
    assert unfit.to_pylist() == [False, False]
    assert moments.cast(pa.int64()).to_pylist() == [1, None]
