"""Several outputs are monitored each by itself, and scored by labels that arrive in a column for each."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.monitoring import Monitor, MonitoringReport, ReferenceProfile, VersionReference
from bloomery.data_contracts.odcs.distributions import Bins, count_into_bins, reference_column
from bloomery.data_contracts.records.output_units import OutputUnits
from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.gates import Gates, RecentData
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.monitoring import shadow_comparison
from bloomery.tasks.monitoring.delayed_labels import read_output_labels
from bloomery.tasks.monitoring.monitor import monitor_window
from bloomery.tasks.promote import recent_data_gate

RNG = np.random.default_rng(0)
NOW = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)
TAG = "people:one"
OUTPUTS = (OutputUnits(name="width", mean=10, deviation=2), OutputUnits(name="height", mean=500, deviation=100))


def make_profile(values: np.ndarray) -> ReferenceProfile:
    cells = Bins(edges=tuple(np.quantile(values, np.arange(1, 20) / 20).tolist()))
    counts = count_into_bins(cells, pa.array(values))
    return ReferenceProfile(num_rows=counts.num_rows, shares=reference_column(counts))


def draw_values(num_rows: int, shift: float = 0.0) -> np.ndarray:
    standard = RNG.normal(size=(num_rows, 2)) + np.array([0, shift])
    return np.array([10, 500]) + np.array([2, 100]) * standard


@pytest.fixture
def artifacts(home: Path, contract_of: Any) -> Path:
    """The reference profile, the contract and the encoder of two versions in the store."""
    contract = contract_of(
        {"name": "width", "logicalType": "number", "logicalTypeOptions": {"minimum": 0}},
        {"name": "height", "logicalType": "number"},
    )
    document = {"key": "id", "label": ["width", "height"], "task": "regression"}
    features = Features.model_validate({**document, "inputs": [{"kind": "number", "columns": ["x"]}]})
    encoder = Encoder.model_construct(features=features, fitted=(), classes=(), outputs=OUTPUTS)
    values = draw_values(2_000)
    reference = VersionReference(
        split="train",
        columns={},
        predictions=make_profile(values.ravel()),
        task="multioutput",
        label="width, height",
        outputs=OUTPUTS,
        output_profiles={"width": make_profile(values[:, 0]), "height": make_profile(values[:, 1])},
        score=Interval(value=0.5, low=0.45, high=0.55),
    )
    for name in ("one", "two"):
        folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / "people" / name / "src" / "artifacts"
        folder.mkdir(parents=True)
        (folder / "reference.json").write_text(reference.model_dump_json(by_alias=True, exclude_defaults=True))
        (folder / "contract.json").write_text(contract.model_dump_json(by_alias=True, exclude_defaults=True))
        (folder / "encoder.json").write_text(encoder.model_dump_json())
    return folder


def write_log(home: Path, values: np.ndarray, role: str = "champion", tag: str = TAG) -> None:
    num = len(values)
    table = pa.table(
        {
            "at": pa.array([NOW - DAY / 2] * num, pa.timestamp("us", "UTC")),
            "request": [f"r{number}" for number in range(num)],
            "row": pa.array([0] * num, pa.int32()),
            "version": [tag] * num,
            "role": [role] * num,
            "seconds": [0.002] * num,
            "run_seconds": [1e-5] * num,
            "batch_size": pa.array([1] * num, pa.int32()),
            "columns": [{"x": 1.0}] * num,
            "prediction": pa.array([{"values": row} for row in values.tolist()]),
        }
    )
    folder = home / "predictions" / "people" / f"day={NOW - DAY / 2:%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{len(list(folder.iterdir())):06d}-1-1.parquet")


def run_monitor(labels: Path | None = None) -> MonitoringReport:
    monitor = Monitor(min_rows=200, min_labels=50, labels=None if labels is None else str(labels))
    version: Any = SimpleNamespace(name="people", version="1", tags={"bento": TAG})
    return monitor_window(version, monitor, NOW - DAY, NOW)


@pytest.mark.parametrize("name", ["speed (km/h)", "(height)", "prediction", "confidence"])
def test_an_output_is_monitored_whatever_its_name(artifacts: Path, home: Path, name: str) -> None:
    path = Path(os.environ["BENTOML_HOME"]) / "bentos" / "people" / "one" / "src" / "artifacts" / "reference.json"
    path.write_text(path.read_text().replace('"height"', json.dumps(name)))
    write_log(home, draw_values(600, shift=1.5))
    drifts = {drift.name: drift.is_drifted for drift in run_monitor().drifts}
    assert drifts == {"(width)": False, f"({name})": True}


def test_the_gate_on_recent_data_compares_outputs_with_a_label(
    artifacts: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.tile([10.0, 500.0], (400, 1))  # equal, since the gate reads rows in another order
    write_log(home, values)
    path = tmp_path / "labels.parquet"
    requests = [f"r{number}" for number in range(400)]
    pq.write_table(
        pa.table({"request": requests, "width": values[:, 0] + 0.2, "height": pa.nulls(400, pa.float64())}), path
    )
    errors = {"people:one": 0.3, "people:two": 1.2}
    monkeypatch.setattr(
        recent_data_gate, "run_bento", lambda tag, encoder, rows: np.full((rows.num_rows, 2), errors[tag] / 2)
    )
    gates = Gates(champion_rise=0.1, recent=RecentData(labels=str(path), window="36500d"))
    result = recent_data_gate.require_not_worse_on_recent_data("people", "people:one", "people:two", gates)
    assert result.startswith(
        "on 400 recent labelled rows the rise of mean RMSE in deviations against people:two is -90"
    )
    with pytest.raises(ReleaseRefused, match="mean RMSE in deviations against people:one"):
        recent_data_gate.require_not_worse_on_recent_data("people", "people:two", "people:one", gates)


def test_drift_of_one_output_is_found_by_its_name(artifacts: Path, home: Path) -> None:
    write_log(home, draw_values(600, shift=1.5))
    drifts = {drift.name: drift.is_drifted for drift in run_monitor().drifts if drift.name.startswith("(")}
    assert {name.strip("()"): is_drifted for name, is_drifted in drifts.items()} == {"width": False, "height": True}


def test_labels_of_each_output_arrive_in_a_column_of_its_own(artifacts: Path, home: Path, tmp_path: Path) -> None:
    values = draw_values(600)
    write_log(home, values)
    labels = values + np.array([2, 100]) * np.where(np.arange(600) % 2, 0.5, -0.5)[:, None]
    width = [None if number % 3 == 0 else label for number, label in enumerate(labels[:, 0])]
    width[1] = -1.0  # forbidden by the contract
    table = pa.table({"request": [f"r{number}" for number in range(600)], "width": width, "height": labels[:, 1]})
    path = tmp_path / "labels.parquet"
    pq.write_table(table, path)
    report = run_monitor(path)
    assert report.labelled is not None
    assert report.labelled.score.value == pytest.approx(0.5)
    assert any("1 labels violate the contract" in note for note in report.notes)
    assert not report.alerts
    pq.write_table(table.drop(["height"]), path)
    with pytest.raises(DataMissing, match="no column height"):
        run_monitor(path)


def test_a_label_that_has_not_arrived_is_null(artifacts: Path, contract_of: Any, tmp_path: Path) -> None:
    contract = contract_of({"name": "width", "logicalType": "number"}, {"name": "height", "logicalType": "number"})
    path = tmp_path / "labels.csv"
    path.write_text("request,width,height\na,1,2\nb,,3\nc,,\na,4,\n")
    labels, num_invalid = read_output_labels(path, contract, ["width", "height"])
    assert num_invalid == 0
    assert dict(zip(labels["request"].to_pylist(), labels["label"].to_pylist(), strict=True)) == {
        "a": "[4.0, 2.0]",
        "b": "[null, 3.0]",
    }


def test_a_shadow_is_compared_in_deviations(artifacts: Path, home: Path, tmp_path: Path) -> None:
    values = draw_values(200)
    write_log(home, values)
    write_log(home, values + np.array([1.0, 50.0]), role="shadow", tag="people:two")
    path = tmp_path / "labels.parquet"
    truth = values + np.array([0.2, 10.0])
    pq.write_table(
        pa.table({"request": [f"r{number}" for number in range(200)], "width": truth[:, 0], "height": truth[:, 1]}),
        path,
    )
    comparison = shadow_comparison.compare_versions("people", TAG, None, path)
    assert comparison.agreement is None
    assert comparison.rms_difference == pytest.approx(0.5)
    assert (comparison.champion_score, comparison.challenger_score) == (pytest.approx(0.1), pytest.approx(0.4))
    assert comparison.degradation is not None
    assert comparison.degradation.value == pytest.approx(3.0)
    assert any("mean RMSE" in line for line in shadow_comparison.describe_comparison(comparison))


def test_an_output_whose_labels_never_arrive_does_not_count(artifacts: Path, home: Path, tmp_path: Path) -> None:
    values = draw_values(200)
    write_log(home, values)
    write_log(home, values + np.array([1.0, 50.0]), role="shadow", tag="people:two")
    path = tmp_path / "labels.parquet"
    requests = [f"r{number}" for number in range(200)]
    absent = pa.nulls(200, pa.float64())
    pq.write_table(pa.table({"request": requests, "width": values[:, 0] + 0.2, "height": absent}), path)
    comparison = shadow_comparison.compare_versions("people", TAG, None, path)
    assert (comparison.champion_score, comparison.challenger_score) == (pytest.approx(0.1), pytest.approx(0.4))
    assert comparison.degradation is not None
    assert comparison.degradation.value == pytest.approx(3.0)
    pq.write_table(pa.table({"request": requests, "width": absent, "height": absent}), path)
    with pytest.raises(DataMissing, match="has no label for any of the 200 rows"):
        shadow_comparison.compare_versions("people", TAG, None, path)
