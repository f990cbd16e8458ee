"""A person's word on a version before it serves: when it is asked for, and what was said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bloomery.data_contracts.documents.documents import Document, NotPartOfKey
from bloomery.data_contracts.documents.durations import Duration, format_duration

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Approval(Document):
    """A person decides before a version becomes champion; nobody's word in time refuses it."""

    required: Literal[True] = True
    timeout: Duration = timedelta(days=3)


def _approval(stated: Any) -> Any:
    return {} if stated == "required" else stated


ApprovalSetting = Annotated[
    Approval | None, BeforeValidator(_approval, json_schema_input_type=Literal["required"] | Approval | None)
]


class PromotionTerms(NotPartOfKey):
    """On what terms a version that passed its gates becomes champion."""

    approval: Approval | None = None
    period: str | None = None  # that its data is of


class Decision(Document):
    """What a person said. It is kept with the version."""

    decision: Literal["approve", "refuse"]
    by: Name
    reason: Name
    at: datetime


class WaitingProcess(Document):
    """The process that waits for a decision, where one does and no worker would start it again."""

    host: str
    pid: int
    started: float  # when the system started it, in seconds since 1970


class ApprovalRequest(Document):
    """A version that passed its gates and waits for a person's word."""

    name: str
    version: int
    replaces: int | None  # the champion that it was compared with
    requested_at: datetime
    expires_at: datetime
    flow_run: str | None = None  # the Prefect run that goes on once it is decided
    prefect_api: str | None = None  # of the Prefect server that knows the run
    waiting_process: WaitingProcess | None = None
    decision: Decision | None = None

    @property
    def has_expired(self) -> bool:
        return self.decision is None and datetime.now(UTC) > self.expires_at

    @property
    def refusal_reason(self) -> str | None:
        """Why the version is refused, or None if it is not."""
        if self.has_expired:
            return f"nobody decided within {format_duration(self.expires_at - self.requested_at)}"
        if self.decision is not None and self.decision.decision == "refuse":
            return f"{self.decision.by} said no: {self.decision.reason}"
        return None
