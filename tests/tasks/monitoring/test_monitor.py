"""A window of the prediction log is compared with the reference profile: alerts, no alerts, and missing inputs."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.monitoring import Monitor, MonitoringReport, ReferenceProfile, VersionReference
from bloomery.data_contracts.odcs.distributions import Bins, count_into_bins, reference_column
from bloomery.data_contracts.records.records import Interval
from bloomery.data_contracts.serving.prediction_log import OUTCOMES_SUFFIX, RequestOutcome
from bloomery.tasks.monitoring import publishing
from bloomery.tasks.monitoring.drift_plot import plot_drift
from bloomery.tasks.monitoring.evidently_report import is_installed, sample_values, write_report
from bloomery.tasks.monitoring.monitor import monitor_window
from bloomery.tasks.monitoring.reference_profile import summarize_values
from bloomery.tasks.tracking.mlflow_runs import metric_names

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
DAY = timedelta(days=1)
TAG = "people:one"
VERSION: Any = SimpleNamespace(name="people", version="3", tags={"bento": TAG})
MONITOR = Monitor(min_rows=200, min_labels=50, latency_ms=100, max_slow_share=0.05)
RNG = np.random.default_rng(0)


def make_profile(cells: Bins, values: Any) -> ReferenceProfile:
    counts = count_into_bins(cells, pa.array(values))
    return ReferenceProfile(num_rows=counts.num_rows, shares=reference_column(counts))


@pytest.fixture
def packaged(home: Path, contract_of: Any) -> VersionReference:
    """The reference profile of a version in the store."""
    age = RNG.normal(40, 10, 2_000)
    reference = VersionReference(
        split="train",
        columns={
            "age": make_profile(Bins(edges=tuple(np.quantile(age, np.arange(1, 100) / 100).tolist())), age),
            "town": make_profile(Bins(values=("bath", "york")), RNG.choice(["bath", "york"], 2_000, p=[0.3, 0.7])),
        },
        predictions=make_profile(Bins(values=("old", "young")), ["old", "young"] * 500),
        confidence=make_profile(Bins(edges=(0.6, 0.8)), RNG.uniform(0.5, 1, 1_000)),
        task="classification",
        label="label",
        score=Interval(value=0.9, low=0.88, high=0.92),
    )
    folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / "people" / "one" / "src" / "artifacts"
    folder.mkdir(parents=True)
    (folder / "reference.json").write_text(reference.model_dump_json(by_alias=True, exclude_defaults=True))
    one_of = {"metric": "invalidValues", "mustBe": 0, "arguments": {"validValues": ["old", "young"]}}
    contract = contract_of({"name": "label", "logicalType": "string", "required": True, "quality": [one_of]})
    (folder / "contract.json").write_text(contract.model_dump_json(by_alias=True, exclude_defaults=True))
    return reference


@pytest.fixture
def log(home: Path) -> Callable[..., Path]:
    """Logs rows of one moment, and returns the folder of the day."""

    def write(
        age: Any, at: datetime = NOW - DAY / 2, share_old: float = 0.5, prefix: str = "r", **outcome: Any
    ) -> Path:
        num = len(age)
        confidences = RNG.uniform(0.5, 1, num)
        outcome = {"version": TAG, "role": "champion", "seconds": 0.002, **outcome}
        table = pa.table(
            {
                "at": pa.array([at] * num, pa.timestamp("us", "UTC")),
                "request": [f"{prefix}{number}" for number in range(num)],
                "row": pa.array([0] * num, pa.int32()),
                "version": [outcome["version"]] * num,
                "role": [outcome["role"]] * num,
                "seconds": np.broadcast_to(outcome["seconds"], num).astype(float),
                "columns": [
                    {"age": float(value), "town": town}
                    for value, town in zip(age, RNG.choice(["bath", "york"], num, p=[0.3, 0.7]), strict=True)
                ],
                "prediction": [
                    {"label": "old" if number < share_old * num else "young", "probabilities": [value, 1 - value]}
                    for number, value in enumerate(confidences)
                ],
            }
        )
        folder = home / "predictions" / "people" / f"day={at:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"{len(list(folder.iterdir())):06d}-1-1.parquet")
        return folder

    return write


def run_monitor(monitor: Monitor = MONITOR) -> MonitoringReport:
    return monitor_window(VERSION, monitor, NOW - DAY, NOW)


def drifted_names(report: MonitoringReport) -> list[str]:
    return [drift.name for drift in report.drifts if drift.is_drifted]


def test_only_rows_that_the_champion_served_in_the_window_count(packaged: Any, log: Any) -> None:
    log(RNG.normal(40, 10, 600))
    log(RNG.normal(90, 10, 300), NOW - 3 * DAY)
    log(RNG.normal(90, 10, 300), NOW)
    log(RNG.normal(90, 10, 300), role="shadow")
    log(RNG.normal(90, 10, 300), version="people:two")
    report = run_monitor()
    assert report.num_rows == 600
    assert (report.alerts, report.has_drifted, len(report.drifts)) == ((), False, 4)
    assert any("no labels have arrived" in note for note in report.notes)


def test_a_drifted_column_raises_an_alert_and_the_others_do_not(packaged: Any, log: Any) -> None:
    log(RNG.normal(55, 10, 600))
    report = run_monitor()
    assert drifted_names(report) == ["age"]
    assert report.has_drifted
    assert "age has drifted" in report.alerts[0].message
    town_report = run_monitor(MONITOR.model_copy(update={"columns": ("town",)}))
    assert drifted_names(town_report) == []
    assert [drift.can_alert for drift in town_report.drifts if drift.name == "age"] == [False]


def test_drifted_predictions_raise_an_alert_whatever_columns_are_monitored(packaged: Any, log: Any) -> None:
    log(RNG.normal(40, 10, 600), share_old=0.95)
    assert drifted_names(run_monitor(MONITOR.model_copy(update={"columns": ("town",)}))) == ["(prediction)"]


def test_columns_may_have_the_names_of_what_is_measured_beside_them(packaged: Any, log: Any, tmp_path: Path) -> None:
    names = ["(prediction)", "prediction"]
    reference = packaged.model_copy(update={"columns": dict(zip(names, packaged.columns.values(), strict=True))})
    folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / "people" / "one" / "src" / "artifacts"
    (folder / "reference.json").write_text(reference.model_dump_json(by_alias=True, exclude_defaults=True))
    (path,) = log(RNG.normal(55, 10, 600)).iterdir()
    table = pq.read_table(path)
    columns = pa.StructArray.from_arrays(table["columns"].combine_chunks().flatten(), names=names)
    pq.write_table(table.set_column(table.column_names.index("columns"), "columns", columns), path)
    report = run_monitor()
    assert drifted_names(report) == ["(prediction)"]
    drifts = [drift.name for drift in report.drifts]
    assert sorted(drifts) == ["((prediction))", "(confidence)", "(prediction)", "prediction"]
    assert len(set(metric_names(drifts).values())) == 4
    plot_drift(report, 0.2, tmp_path / "drift.png")


def test_drift_is_not_measured_on_few_rows(packaged: Any, log: Any) -> None:
    log(RNG.normal(90, 10, 199))
    report = run_monitor()
    assert (report.drifts, report.alerts) == ((), ())
    assert any("199 rows are too few" in note for note in report.notes)


def test_predictions_are_scored_once_there_are_enough_labels(
    packaged: Any, log: Any, home: Path, tmp_path: Path
) -> None:
    log(RNG.normal(40, 10, 600))
    folder = home / "labels" / "people"
    folder.mkdir(parents=True)
    names = [f"r{n}" for n in range(600)]
    pq.write_table(pa.table({"request": names[:49], "label": ["old"] * 49}), folder / "first.parquet")
    assert any("49 of 600 rows have a label" in note for note in run_monitor().notes)
    # Correct for the old, and for half of the young; many more labels of the young have arrived.
    labels = ["old" if n < 300 or n % 2 else "young" for n in range(600)]
    table = pa.table({"request": names[200:], "label": labels[200:]})
    pq.write_table(table, folder / "second.parquet")
    pq.write_table(pa.table({"request": ["r199", "r198"], "label": ["ancient", "none"]}), folder / "third.parquet")
    report = run_monitor()
    assert report.labelled is not None
    assert report.labelled.num_labelled == 449
    assert any("2 labels violate the contract" in note for note in report.notes)
    assert report.labelled.score.value == pytest.approx((149 + 150) / 449)
    assert report.labelled.weighted_score is not None
    assert report.labelled.weighted_score.value == pytest.approx(0.75)
    assert [alert.kind for alert in report.alerts] == ["drift"]
    assert "accuracy is 75.0%" in report.alerts[0].message
    csv = tmp_path / "labels.csv"
    csv.write_text("request,label\n" + "".join(f"{name},old\n" for name in names[:300]))
    csv_report = run_monitor(MONITOR.model_copy(update={"labels": str(csv)}))
    assert csv_report.labelled is not None
    assert (csv_report.labelled.score.value, csv_report.labelled.coverage, csv_report.alerts) == (1.0, 0.5, ())


def test_unreadable_labels_are_reported(packaged: Any, log: Any, tmp_path: Path) -> None:
    log(RNG.normal(40, 10, 300))
    csv = tmp_path / "labels.csv"
    csv.write_text("id,label\n1,old\n")
    with pytest.raises(DataMissing, match="has no column request"):
        run_monitor(MONITOR.model_copy(update={"labels": str(csv)}))
    csv.write_text("request,row,label\nr1,first,old\n")
    with pytest.raises(DataMissing, match="row has a wrong type"):
        run_monitor(MONITOR.model_copy(update={"labels": str(csv)}))
    with pytest.raises(DataMissing, match="cannot be read"):
        run_monitor(MONITOR.model_copy(update={"labels": str(tmp_path / "none.parquet")}))


def test_rejected_failed_and_slow_requests_raise_service_alerts(packaged: Any, log: Any) -> None:
    folder = log(RNG.normal(40, 10, 300), seconds=np.where(np.arange(300) < 60, 0.5, 0.002))
    outcome = RequestOutcome(
        at=NOW - DAY / 2,
        version=TAG,
        statuses={200: 300, 422: 60, 503: 20},
        violations={"age: must be at least 0": 50, "town: must not be null": 10},
    )
    other_outcomes = [
        outcome.model_copy(update={"version": "people:two"}),
        outcome.model_copy(update={"at": NOW - 2 * DAY}),
    ]
    lines = [request_outcome.model_dump_json() for request_outcome in (outcome, *other_outcomes)]
    (folder / f"7{OUTCOMES_SUFFIX}").write_text("\n".join([*lines, lines[0][:40]]))  # the last one is incomplete
    report = run_monitor()
    assert (report.requests.num_requests, report.has_drifted) == (380, False)
    assert report.requests.violations[0] == ("age: must be at least 0", 50)
    assert [alert.kind for alert in report.alerts] == ["service"] * 3
    messages = " ".join(alert.message for alert in report.alerts)
    for words in ("15.79% of the requests were rejected", "5.26% of the requests failed with a 5xx", "20.00% of the"):
        assert words in messages
    assert (report.requests.p50_ms, report.requests.p99_ms) == (pytest.approx(2), pytest.approx(500))


def test_a_report_is_logged_plotted_and_exported(packaged: Any, log: Any, home: Path, tmp_path: Path) -> None:
    from bloomery.tasks.tracking import mlflow_runs

    log(RNG.normal(55, 10, 600))
    report = run_monitor()
    # A run that a killed process has left open.
    tags = {mlflow_runs.STAGE_KEY: "monitor-people"}
    open_run_id = (
        mlflow_runs.client()
        .create_run(mlflow_runs.ensure_experiment("people"), run_name="monitor", tags=tags)
        .info.run_id
    )
    run = mlflow_runs.client().get_run(publishing.log_report(report, MONITOR))
    assert mlflow_runs.client().get_run(open_run_id).info.status == "KILLED"
    assert run.data.metrics["psi/age"] == pytest.approx(report.drifts[0].psi)
    assert run.data.tags["drifted"] == "true"
    artifacts = {file.path for file in mlflow_runs.client().list_artifacts(run.info.run_id)}
    assert {"drift.png", "report.json", "report.md"} <= artifacts
    text = publishing.write_prometheus_file(report).read_text()
    assert 'bloomery_monitor_drifted{column="age",model="people",version="3"} 1.0' in text
    assert 'bloomery_monitor_alerts{kind="drift",model="people",version="3"} 1.0' in text
    plot_drift(report, MONITOR.psi, tmp_path / "drift.png")
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    assert MonitoringReport.model_validate_json(report.model_dump_json()) == report


def test_missing_inputs_are_reported(home: Path, request: pytest.FixtureRequest) -> None:
    with pytest.raises(DataMissing, match="has no readable reference profile"):
        run_monitor()
    request.getfixturevalue("packaged")
    with pytest.raises(DataMissing, match="no request was logged for people"):
        run_monitor()
    (home / "predictions" / "people").mkdir(parents=True)
    with pytest.raises(DataMissing, match="has no reference profile of height"):
        run_monitor(MONITOR.model_copy(update={"columns": ("height",)}))
    assert run_monitor().num_rows == 0


@pytest.mark.parametrize(
    ("measure", "values", "expected"),
    [
        ("value", [1, None], [1, None]),
        ("length", ["abc", "é", None], [3, 1, None]),
        ("mean", [[1, 2, 3], [None, 4], [], None, [None]], [2.0, 4.0, None, None, None]),
        ("last", [[1, 2, 3], [], None, [7, None]], [3, None, None, None]),
    ],
)
def test_arrays_and_texts_are_measured_by_one_value(measure: Any, values: list[Any], expected: list[Any]) -> None:
    assert summarize_values(pa.array(values), measure).to_pylist() == expected
    assert (
        summarize_values(pa.array([values[-1], *values]).slice(1), measure).to_pylist() == expected
    )  # a slice of a batch


@given(
    shares=st.lists(st.integers(0, 50), min_size=4, max_size=8).filter(sum),
    num_rows=st.integers(1, 500),
    is_number=st.booleans(),
)
def test_sampled_values_have_the_counts_of_the_bins(shares: list[int], num_rows: int, is_number: bool) -> None:
    all_shares = tuple(share / sum(shares) for share in shares)
    num_cells = len(shares) - 2
    edges = Bins(edges=tuple(float(2**number) for number in range(num_cells - 1)))
    cells = edges if is_number else Bins(values=tuple(f"v{number}" for number in range(num_cells)))
    values = sample_values(cells, all_shares, num_rows)
    assert len(values) == num_rows
    counts = count_into_bins(cells, pa.array(values, pa.float64() if is_number else pa.string()))
    observed_counts = [*counts.counts, counts.num_other, counts.num_null]
    # To Evidently a null number is missing, and a missing name is a category.
    observed_counts[-2:], all_shares = [sum(observed_counts[-2:])], (*all_shares[:-2], sum(all_shares[-2:]))
    assert all(abs(count - share * num_rows) <= 1.01 for count, share in zip(observed_counts, all_shares, strict=True))


@pytest.mark.slow
def test_evidently_writes_a_page_that_needs_no_network(packaged: Any, log: Any, tmp_path: Path) -> None:
    pytest.importorskip("litestar", reason="the extra `monitoring` is not installed")
    log(RNG.normal(55, 10, 600))
    assert is_installed()
    assert write_report(run_monitor(), 0.2, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "age" in page
    assert 'src="http' not in page
    assert [path.name for path in tmp_path.glob("report*")] == ["report.html"]
