"""When a recipe runs by itself."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self
from zoneinfo import ZoneInfo, available_timezones

from croniter import croniter
from pydantic import Field, field_validator, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.durations import Duration


class Schedule(Document):
    """A cron line, or an interval; both are read in the time zone, so that they follow its summer time."""

    cron: Annotated[str | None, Field(description="minute, hour, day of the month, month, day of the week")] = None
    every: Annotated[Duration | None, Field(description="such as 6h")] = None
    timezone: Annotated[str, Field(description="such as Europe/Berlin")] = "UTC"
    active: Annotated[bool, Field(description="false keeps the schedule, and starts nothing")] = True

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, line: str | None) -> str | None:
        if line is not None and (len(line.split()) != 5 or not croniter.is_valid(line)):
            raise ValueError(f"{line!r} is no cron line of five fields, such as '0 3 * * *' for every night at three")
        return line

    @field_validator("every")
    @classmethod
    def _is_long_enough(cls, every: timedelta | None) -> timedelta | None:
        if every is not None and every < timedelta(minutes=1):
            raise ValueError(f"{every} is shorter than a minute")
        return every

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"{name!r} is no time zone, such as Europe/Berlin or UTC")
        return ZoneInfo(name).key

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("a schedule has either `cron` or `every`")
        return self
