"""The boundaries of a split by time."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest
from pydantic import ValidationError

from bloomery.models.features.splits import Split

DAY = 86_400_000_000
NEW_YEAR_2020 = 18_262 * DAY


@pytest.mark.parametrize(
    ("val_from", "test_from", "boundaries"),
    [
        (5, 9, (5, 9)),
        ("2020-01-01", "2020-01-02", (NEW_YEAR_2020, NEW_YEAR_2020 + DAY)),
        ("2020-01-01T00:00:00", "2020-01-02T03:00:00+03:00", (NEW_YEAR_2020, NEW_YEAR_2020 + DAY)),
        (date(2020, 1, 1), date(2020, 1, 2), (NEW_YEAR_2020, NEW_YEAR_2020 + DAY)),
        ("1969-12-31T23:59:59.999999Z", datetime(1970, 1, 1, tzinfo=UTC), (-1, 0)),
    ],
)
def test_stated_boundaries_are_integers_and_round_trip_through_json(val_from, test_from, boundaries):
    split = Split(by="time", column="seen", val_from=val_from, test_from=test_from)
    assert split.boundaries == boundaries
    assert Split.model_validate(split.model_dump(mode="json")) == split


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": "time", "column": "a", "val_from": 1}, "one needs the other"),
        ({"by": "group", "column": "a", "val_from": 1, "test_from": 2}, "are for `by: time`"),
        ({"by": "time", "column": "a", "val_from": 2, "test_from": 2}, "must be before test"),
        ({"by": "time", "column": "a", "val_from": 2, "test_from": "2020-01-01"}, "both be numbers, or both dates"),
    ],
)
def test_invalid_boundaries_are_refused(fields, message):
    with pytest.raises(ValidationError, match=message):
        Split(**fields)
