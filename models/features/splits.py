"""The `split` section of a recipe: how rows are split, and what two splits must not share."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # the split of rows whose label is null, with `unlabelled: teach`
Share = Annotated[float, Field(gt=0, lt=1)]


def _to_utc(moment: int | datetime) -> int | datetime:
    return moment.replace(tzinfo=UTC) if isinstance(moment, datetime) and moment.tzinfo is None else moment


Moment = Annotated[int | datetime, AfterValidator(_to_utc)]


class Split(Document):
    """How rows are split. A row's split depends on that row alone, so added rows do not move it.

    `key` and `group` split by a hash of the key or of `column`, which keeps groups together. `time` splits in the
    order of `column`, earliest first: by fractions, or at `val_from` and `test_from`, which added rows do not move.
    `given` reads the split from `column`; if it assigns no row to val, the fraction `val` of train goes there.
    """

    by: Literal["key", "group", "time", "given"] = "key"
    column: str | None = None
    train: Share = 0.7
    val: Share = 0.1
    test: Share = 0.2
    val_from: Annotated[
        Moment | None, Field(description="by time: when val begins; a time without an offset is in UTC")
    ] = None
    test_from: Annotated[Moment | None, Field(description="by time: when test begins")] = None
    salt: str = ""
    apart: Annotated[tuple[str, ...], Field(description="columns of which no value may occur in two splits")] = ()
    in_time: Annotated[
        str | None, Field(description="a column in which no row of val may be before train, nor test before val")
    ] = None
    duplicates: Annotated[
        Literal["refuse", "allow"], Field(description="rows with equal inputs and label in two splits")
    ] = "refuse"

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if (self.by == "key") != (self.column is None):
            raise ValueError(f"by: {self.by} {'takes no column' if self.by == 'key' else 'needs a column'}")
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(f"train, val and test add up to {self.train + self.val + self.test:g}, not to 1")
        boundaries = (self.val_from, self.test_from)
        if any(boundary is not None for boundary in boundaries) and (self.by != "time" or None in boundaries):
            raise ValueError("val_from and test_from are for `by: time`, and one needs the other")
        if self.boundaries is not None and self.boundaries[0] >= self.boundaries[1]:
            raise ValueError(f"val begins at {self.val_from}, which must be before test at {self.test_from}")
        return self

    @property
    def boundaries(self) -> tuple[int, int] | None:
        """Where val and test begin, if configured: integers as they are, times as microseconds since 1970-01-01 UTC.

        Raises:
            ValueError: one is an integer and the other a date or time.
        """
        if self.val_from is None or self.test_from is None:
            return None
        if isinstance(self.val_from, int) != isinstance(self.test_from, int):
            raise ValueError("val_from and test_from must both be numbers, or both dates or times")
        return _to_microseconds(self.val_from), _to_microseconds(self.test_from)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the split and its checks read."""
        names = (self.column, *self.apart, self.in_time)
        return tuple(dict.fromkeys(name for name in names if name is not None))


def hash_threshold(share: float) -> str:
    """The smallest 128-bit digest, as 32 hexadecimal digits, above the lowest fraction `share` of all digests."""
    return format(min(int(share * 2**128), 2**128 - 1), "032x")


def _to_microseconds(moment: int | datetime) -> int:
    if isinstance(moment, int):
        return moment
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
