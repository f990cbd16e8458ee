"""A recipe's `approval`, and the requests and decisions of people about versions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from bloomery.data_contracts.documents.documents import Document, NotPartOfKey
from bloomery.data_contracts.documents.durations import Duration, format_duration

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Approval(Document):
    """A person must approve a version before it becomes champion; without a decision in time it is refused."""

    required: Literal[True] = True
    timeout: Duration = timedelta(days=3)


def _expand_short_form(value: Any) -> Any:
    return {} if value == "required" else value


ApprovalSetting = Annotated[
    Approval | None, BeforeValidator(_expand_short_form, json_schema_input_type=Literal["required"] | Approval | None)
]


class PromotionTerms(NotPartOfKey):
    """The conditions under which a version that passed its gates becomes champion."""

    approval: Approval | None = None
    period: str | None = None  # of its data, in a dated recipe


class Decision(Document):
    """A person's decision, which is stored with the version."""

    decision: Literal["approve", "refuse"]
    by: Name
    reason: Name
    at: datetime


class WaitingProcess(Document):
    """The process that waits for a decision, if no Prefect worker would resume the run."""

    host: str
    pid: int
    started: float  # seconds since 1970


class ApprovalRequest(Document):
    """A request to approve a version that passed its gates."""

    name: str
    version: int
    replaces: int | None  # the champion's version
    requested_at: datetime
    expires_at: datetime
    flow_run: str | None = None  # the Prefect run that resumes after the decision
    prefect_api: str | None = None  # of the Prefect server that has the run
    waiting_process: WaitingProcess | None = None
    decision: Decision | None = None

    @property
    def has_expired(self) -> bool:
        return self.decision is None and datetime.now(UTC) > self.expires_at

    @property
    def refusal_reason(self) -> str | None:
        """Why the version is refused; None if it is not."""
        if self.has_expired:
            return f"nobody decided within {format_duration(self.expires_at - self.requested_at)}"
        if self.decision is not None and self.decision.decision == "refuse":
            return f"{self.decision.by} said no: {self.decision.reason}"
        return None
