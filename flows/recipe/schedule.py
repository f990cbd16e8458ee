"""When a recipe runs automatically."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Self
from zoneinfo import ZoneInfo, available_timezones

from pydantic import Field, field_validator, model_validator

from bloomery.data_contracts.documents.cron import CronExpression
from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.durations import Duration


class Schedule(Document):
    """A cron expression or an interval. Both follow daylight saving time in the time zone."""

    cron: Annotated[CronExpression | None, Field(description="minute, hour, day of month, month, day of week")] = None
    interval: Annotated[Duration | None, Field(description="such as 6h")] = None
    timezone: Annotated[str, Field(description="such as Europe/Berlin")] = "UTC"
    active: Annotated[bool, Field(description="false keeps the schedule but starts no runs")] = True

    @field_validator("interval")
    @classmethod
    def _is_long_enough(cls, interval: timedelta | None) -> timedelta | None:
        if interval is not None and interval < timedelta(minutes=1):
            raise ValueError(f"{interval} is shorter than one minute")
        return interval

    @field_validator("timezone")
    @classmethod
    def _is_a_time_zone(cls, name: str) -> str:
        if name not in available_timezones():
            raise ValueError(f"{name!r} is not a time zone, such as Europe/Berlin or UTC")
        return ZoneInfo(name).key

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        if (self.cron is None) == (self.interval is None):
            raise ValueError("a schedule has either `cron` or `interval`")
        return self
