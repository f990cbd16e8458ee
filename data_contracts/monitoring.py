"""What is watched of a version that answers: what is usual for it, what was found in a window, and what is an alarm."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.odcs.distributions import Histogram, ReferenceColumn
from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.tensor_layout import Task

REFERENCE_FILE = "reference.json"  # in a bento, beside the model
Measure = Literal["value", "last", "mean", "length"]
Span = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}[mhd]$", description="minutes, hours or days, such as 1d")]
Proportion = Annotated[float, Field(ge=0, le=1)]
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


def span(text: str) -> timedelta:
    """The time that a `Span` says."""
    return timedelta(**{_UNITS[text[-1]]: int(text[:-1])})


class Monitor(Document):
    """A recipe's `monitor`: which rows are looked at, and from where on something is an alarm.

    No part of it decides what a run makes.
    """

    window: Annotated[Span, Field(description="which requests are looked at: those of the last so many days")] = "1d"
    min_rows: Annotated[int, Field(ge=50, description="fewer rows in the window tell nothing")] = 500
    columns: Annotated[
        tuple[str, ...] | None, Field(min_length=1, description="whose drift counts; left out, all that are asked")
    ] = None
    psi: Annotated[float, Field(gt=0, description="a distribution is as far from the reference, and not less")] = 0.2
    significance: Annotated[
        float, Field(gt=0, lt=1, description="the chance of a false alarm, of all columns together, is no larger")
    ] = 0.01
    labels: Annotated[
        str | None,
        Field(
            description="a Parquet or CSV file, or a folder of them, with `request`, `label`, and `row` where requests "
            "have several; left out, the folder labels/NAME of the state folder"
        ),
    ] = None
    min_labels: Annotated[int, Field(ge=10, description="fewer labelled rows tell nothing")] = 100
    score_drop: Annotated[
        float, Field(gt=0, lt=1, description="the accuracy is as much lower than on the held-out rows")
    ] = 0.05
    error_rise: Annotated[float, Field(gt=0, description="of a regression: the RMSE is as much higher, as a share")] = (
        0.2
    )
    latency_ms: Annotated[float, Field(gt=0, description="a request that takes longer is slow")] = 100.0
    slow_share: Annotated[Proportion, Field(description="of the requests, that may be slow")] = 0.01
    failed_share: Annotated[Proportion, Field(description="of the requests, that may be answered with 5xx")] = 0.001
    refused_share: Annotated[
        Proportion, Field(description="of the requests, that may be refused since they break the contract")
    ] = 0.05
    schedule: Annotated[
        str | None, Field(pattern=r"^\S+( \S+){4}$", description="when to look, as cron says it, in UTC")
    ] = None
    retrain: Annotated[bool, Field(description="whether drift starts the recipe's deployment")] = True
    pause: Annotated[Span, Field(description="at least so long from one retraining to the next")] = "6h"


class ReferenceProfile(Document):
    """How what is measured of a column is distributed over `num_rows` rows.

    An array counts by its mean, a window over time by its last value, a text of many values by its number of letters.
    """

    measure: Measure = "value"
    num_rows: Annotated[int, Field(ge=1)]
    shares: ReferenceColumn


class VersionReference(Document):
    """What is usual for a version: the columns of the rows that it learnt from, and its own answers to held-out rows.

    `part` is `test` where training was private: then no row that was learnt from counts here. `answers` are labels or
    figures, and `confidence` is the probability of the label that is answered; there is none of a regression.
    """

    split: Literal["train", "test"]
    columns: dict[str, ReferenceProfile]
    predictions: ReferenceProfile
    confidence: ReferenceProfile | None = None
    task: Task
    label: str  # its column in the contract
    score: Interval  # on the held-out rows


class Drift(Document):
    """How far a distribution in the window is from what is usual.

    `noise` is the PSI that so many rows have by chance, and `corrected` the chance with all distributions in mind.
    """

    name: str
    measure: Measure
    num_rows: int
    psi: float
    noise_psi: float
    test: Literal["ks", "chi-square"]
    statistic: float
    p_value: float
    corrected_p_value: float
    can_alert: bool  # in alarms
    is_drifted: bool
    reference: ReferenceColumn
    observed: Histogram


class RequestStats(Document):
    """What became of requests in the window, and how long those that were answered took."""

    num_requests: int
    refused: Interval | None  # shares of them; None where there was none
    failed: Interval | None
    violations: tuple[tuple[str, int], ...]  # rules of the contract, and the rows that broke them, most first
    num_timed: int
    p50_ms: float | None
    p99_ms: float | None
    slow: Interval | None


class LabelledScore(Document):
    """How right the answers were, as far as labels have come.

    `weighted` counts each answer as often as it was given, whichever labels came; there is none of a regression.
    """

    num_labelled: int
    score: Interval
    weighted_score: Interval | None
    coverage: float  # the share of rows whose answer has labelled ones
    held_out_score: Interval


class Alert(Document):
    """`kind` is `drift` where another training may help, and `service` where it does not."""

    kind: Literal["drift", "service"]
    message: str


class MonitoringReport(Document):
    """One look at a window of a version's requests."""

    name: str
    version: int
    bento: str
    task: Task
    since: datetime
    until: datetime
    num_rows: int
    split: Literal["train", "test"]
    drifts: tuple[Drift, ...]  # none where there are too few rows
    requests: RequestStats
    labelled: LabelledScore | None
    notes: tuple[str, ...]  # what could not be told, and why
    alerts: tuple[Alert, ...]

    @property
    def has_drifted(self) -> bool:
        return any(alarm.kind == "drift" for alarm in self.alerts)
