"""Periods have names that sort by time, in UTC."""

import pytest

from bloomery.data_contracts.documents.durations import in_words
from bloomery.data_contracts.recipe_sections.periods import (
    EXAMPLES,
    Every,
    between,
    dated,
    last_whole,
    name_of,
    start_of,
)


@pytest.mark.parametrize(
    ("every", "first", "last", "names"),
    [
        ("month", "2019-11", "2020-02", ["2019-11", "2019-12", "2020-01", "2020-02"]),
        ("week", "2020-W52", "2021-W01", ["2020-W52", "2020-W53", "2021-W01"]),
        ("day", "2020-02-28", "2020-03-01", ["2020-02-28", "2020-02-29", "2020-03-01"]),
        ("hour", "2020-12-31T23", "2021-01-01T00", ["2020-12-31T23", "2021-01-01T00"]),
    ],
)
def test_periods_follow_each_other(every: Every, first: str, last: str, names: list[str]) -> None:
    assert list(between(first, last, every)) == names
    assert [name_of(start_of(name), every) for name in names] == names
    assert last_whole(start_of(names[1]), every) == names[0]
    with pytest.raises(ValueError, match="lies before"):
        list(between(last, first, every))


@pytest.mark.parametrize("name", ["2019-13", "2019-02-30", "2019", "2019-W60", "2019-02-28T24", "", "2019-2"])
def test_what_is_no_period_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is no period, such as 2019-02"):
        start_of(name)


def test_a_period_stands_where_it_is_asked_for() -> None:
    assert dated("s3://b/{period:%Y/%m}/t-{period:%d}.csv", "2019-02-03") == "s3://b/2019/02/t-03.csv"
    assert all(start_of(example, every) for every, example in EXAMPLES.items())


def test_spans_of_time_are_told_as_they_are_written() -> None:
    from datetime import timedelta

    from pydantic import TypeAdapter, ValidationError

    from bloomery.data_contracts.documents.durations import Duration

    read = TypeAdapter(Duration)
    for text in ("30s", "5m", "24h", "3d", "90m"):
        span = read.validate_python(text)
        assert read.validate_python(in_words(span)) == span
    assert in_words(timedelta(hours=24)) == "1d"
    for wrong in ("0m", "5", "m", "5 weeks", "-5m", ""):
        with pytest.raises(ValidationError):
            read.validate_python(wrong)
