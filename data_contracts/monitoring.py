"""What monitoring compares: a version's reference profile, the requests of a window, and the alerts that follow."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field

from bloomery.data_contracts.documents.cron import CronExpression
from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.documents.durations import Duration
from bloomery.data_contracts.odcs.distributions import Histogram, ReferenceColumn
from bloomery.data_contracts.records.output_units import OptionalClassOutputs, OptionalOutputs
from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.records.tensor_layout import Task

REFERENCE_FILE = "reference.json"  # in a bento, beside the model
Measure = Literal["value", "last", "mean", "length"]
Proportion = Annotated[float, Field(ge=0, le=1)]


class Monitor(Document):
    """A recipe's `monitor`: which requests are compared with the reference, and the limits of alerts.

    It does not change what a run produces.
    """

    window: Annotated[Duration, Field(description="how far back requests are compared")] = timedelta(days=1)
    min_rows: Annotated[int, Field(ge=50, description="with fewer rows in the window drift is not tested")] = 500
    columns: Annotated[
        tuple[str, ...] | None, Field(min_length=1, description="columns whose drift raises an alert (default all)")
    ] = None
    psi: Annotated[float, Field(gt=0, description="smallest PSI, beyond that of chance, that counts as drift")] = 0.2
    significance: Annotated[
        float, Field(gt=0, lt=1, description="largest chance of a false alert, over all columns together")
    ] = 0.01
    labels: Annotated[
        str | None,
        Field(
            description="a Parquet or CSV file, or a folder of them, with columns `request`, `label`, and `row` where "
            "requests have several rows (default the folder labels/NAME of the state folder)"
        ),
    ] = None
    min_labels: Annotated[int, Field(ge=10, description="with fewer labelled rows the score is not compared")] = 100
    score_drop: Annotated[
        float, Field(gt=0, lt=1, description="drop of accuracy, against the held-out rows, that raises an alert")
    ] = 0.05
    error_rise: Annotated[
        float,
        Field(gt=0, description="rise of a regression's RMSE that raises an alert, as a share of the RMSE"),
    ] = 0.2
    latency_ms: Annotated[float, Field(gt=0, description="a request that takes longer is slow")] = 100.0
    max_slow_share: Annotated[Proportion, Field(description="share of the requests that may be slow")] = 0.01
    max_failed_share: Annotated[Proportion, Field(description="share of the requests that may get a 5xx status")] = (
        0.001
    )
    max_rejected_share: Annotated[
        Proportion, Field(description="share of the requests that may be rejected because they violate the contract")
    ] = 0.05
    schedule: Annotated[CronExpression | None, Field(description="when to monitor, as a cron expression in UTC")] = None
    retrain: Annotated[bool, Field(description="whether drift starts the recipe's deployment")] = True
    pause: Annotated[Duration, Field(description="shortest time between two retrainings")] = timedelta(hours=6)


class ReferenceProfile(Document):
    """The distribution of one measure of a column over `num_rows` rows.

    `measure` is the value itself; the mean of an array; the last value of a window over time; or the length of a text
    that takes many values.
    """

    measure: Measure = "value"
    num_rows: Annotated[int, Field(ge=1)]
    shares: ReferenceColumn


class VersionReference(Document):
    """The reference of a version: its training rows by column, and its own predictions of held-out rows.

    `split` is `test` where training was private, so that no training row is described. `predictions` are labels or
    numbers; `confidence` is the probability of the predicted label, and None for a regression.
    """

    split: Literal["train", "test"]
    columns: dict[str, ReferenceProfile]
    predictions: ReferenceProfile
    confidence: ReferenceProfile | None = None
    task: Task
    label: str  # its column in the contract, or those of several outputs
    outputs: OptionalOutputs = ()
    class_outputs: OptionalClassOutputs = ()
    output_profiles: Annotated[
        dict[str, ReferenceProfile] | None,
        Field(exclude_if=is_unset, description="of several outputs: their predictions by name"),
    ] = None
    score: Interval  # on the held-out rows


class Drift(Document):
    """The distance between a distribution in the window and its reference.

    `noise_psi` is the expected PSI of so many rows without drift; `corrected_p_value` accounts for all distributions
    that are tested together.
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
    can_alert: bool  # whether drift of this column raises an alert
    is_drifted: bool
    reference: ReferenceColumn
    observed: Histogram


class RequestStats(Document):
    """Outcomes of the requests in the window, and the latency of those with predictions."""

    num_requests: int
    rejected: Interval | None  # as a share of the requests; None without a request
    failed: Interval | None
    violations: tuple[tuple[str, int], ...]  # rules with the number of rows that broke them, largest first
    num_timed: int
    p50_ms: float | None
    p99_ms: float | None
    slow: Interval | None


class LabelledScore(Document):
    """The score of the predictions whose labels have arrived.

    `weighted_score` weights each predicted label by how often it was predicted in the window, since labels may arrive
    for some more than for others; None for a regression, and for sets of labels.
    """

    num_labelled: int
    score: Interval
    weighted_score: Interval | None
    coverage: float  # share of the rows whose predicted label has labelled rows
    held_out_score: Interval


class Alert(Document):
    """`kind` is `drift` where retraining may help, and `service` where it does not."""

    kind: Literal["drift", "service"]
    message: str


class MonitoringReport(Document):
    """One comparison of a window of a version's requests with its reference."""

    name: str
    version: int
    bento: str
    task: Task
    since: datetime
    until: datetime
    num_rows: int
    split: Literal["train", "test"]
    drifts: tuple[Drift, ...]  # empty if there are too few rows
    requests: RequestStats
    labelled: LabelledScore | None
    notes: tuple[str, ...]  # what could not be compared, and why
    alerts: tuple[Alert, ...]

    @property
    def has_drifted(self) -> bool:
        return any(alert.kind == "drift" for alert in self.alerts)
