"""Periods have names that sort by time, in UTC."""

import pytest

from bloomery.data_contracts.documents.durations import format_duration
from bloomery.data_contracts.recipe_sections.periods import (
    PERIOD_EXAMPLES,
    PeriodLength,
    fill_period,
    last_complete_period,
    period_name,
    period_range,
    period_start,
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
def test_periods_follow_each_other(every: PeriodLength, first: str, last: str, names: list[str]) -> None:
    assert list(period_range(first, last, every)) == names
    assert [period_name(period_start(name), every) for name in names] == names
    assert last_complete_period(period_start(names[1]), every) == names[0]
    with pytest.raises(ValueError, match="is before"):
        list(period_range(last, first, every))


@pytest.mark.parametrize("name", ["2019-13", "2019-02-30", "2019", "2019-W60", "2019-02-28T24", "", "2019-2"])
def test_an_invalid_period_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not a period such as 2019-02"):
        period_start(name)


def test_a_placeholder_is_replaced_by_the_period() -> None:
    assert fill_period("s3://b/{period:%Y/%m}/t-{period:%d}.csv", "2019-02-03") == "s3://b/2019/02/t-03.csv"
    assert all(period_start(example, every) for every, example in PERIOD_EXAMPLES.items())


def test_a_duration_is_formatted_as_it_is_written() -> None:
    from datetime import timedelta

    from pydantic import TypeAdapter, ValidationError

    from bloomery.data_contracts.documents.durations import Duration

    adapter = TypeAdapter(Duration)
    for text in ("30s", "5m", "24h", "3d", "90m"):
        duration = adapter.validate_python(text)
        assert adapter.validate_python(format_duration(duration)) == duration
    assert format_duration(timedelta(hours=24)) == "1d"
    for invalid in ("0m", "5", "m", "5 weeks", "-5m", ""):
        with pytest.raises(ValidationError):
            adapter.validate_python(invalid)
