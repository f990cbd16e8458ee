"""Several labels with classes are monitored, scored and compared each by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.monitoring import ReferenceProfile, VersionReference
from bloomery.data_contracts.odcs.distributions import Bins, count_into_bins, reference_column
from bloomery.data_contracts.records.output_units import ClassOutput
from bloomery.data_contracts.records.records import Interval
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.monitoring import shadow_comparison
from bloomery.tasks.monitoring.delayed_labels import parse_classes
from bloomery.tasks.promote.gates import align_class_outputs
from tests.tasks.monitoring.test_several_outputs import DAY, NOW, TAG, run_monitor

OUTPUTS = (ClassOutput(name="colour", classes=("blue", "red")), ClassOutput(name="size", classes=(1, 2, 3)))
RNG = np.random.default_rng(0)


def make_profile(names: list[str]) -> ReferenceProfile:
    counts = count_into_bins(Bins(values=tuple(sorted(set(names)))), pa.array(names))
    return ReferenceProfile(num_rows=counts.num_rows, shares=reference_column(counts))


def draw_rows(num_rows: int, share_red: float = 0.5) -> list[list[str]]:
    colours = RNG.choice(["blue", "red"], num_rows, p=[1 - share_red, share_red])
    return [[str(colour), str(size)] for colour, size in zip(colours, RNG.integers(1, 4, num_rows), strict=True)]


@pytest.fixture
def artifacts(home: Path, contract_of: Any) -> None:
    contract = contract_of({"name": "colour", "logicalType": "string"}, {"name": "size", "logicalType": "integer"})
    document = {"key": "id", "label": ["colour", "size"], "task": "classification"}
    features = Features.model_validate({**document, "inputs": [{"kind": "number", "columns": ["x"]}]})
    encoder = Encoder.model_construct(features=features, fitted=(), classes=(), class_outputs=OUTPUTS)
    rows = draw_rows(2_000)
    columns = [[row[position] for row in rows] for position in (0, 1)]
    reference = VersionReference(
        split="train",
        columns={},
        predictions=make_profile([name for column in columns for name in column]),
        task="multitask",
        label="colour, size",
        class_outputs=OUTPUTS,
        output_profiles={"colour": make_profile(columns[0]), "size": make_profile(columns[1])},
        score=Interval(value=0.9, low=0.88, high=0.92),
    )
    for name in ("one", "two"):
        folder = Path(os.environ["BENTOML_HOME"]) / "bentos" / "people" / name / "src" / "artifacts"
        folder.mkdir(parents=True)
        (folder / "reference.json").write_text(reference.model_dump_json(by_alias=True, exclude_defaults=True))
        (folder / "contract.json").write_text(contract.model_dump_json(by_alias=True, exclude_defaults=True))
        (folder / "encoder.json").write_text(encoder.model_dump_json())


def write_log(home: Path, rows: list[list[str]], role: str = "champion", tag: str = TAG) -> None:
    num = len(rows)
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
            "prediction": pa.array([{"classes": row, "probabilities": [1.0] * 6} for row in rows]),
        }
    )
    folder = home / "predictions" / "people" / f"day={NOW - DAY / 2:%Y-%m-%d}"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / f"{len(list(folder.iterdir())):06d}-1-1.parquet")


def write_labels(path: Path, colours: list[str | None], sizes: list[int | None]) -> Path:
    requests = [f"r{number}" for number in range(len(colours))]
    pq.write_table(pa.table({"request": requests, "colour": colours, "size": sizes}), path)
    return path


@pytest.mark.usefixtures("artifacts")
def test_drift_and_accuracy_are_those_of_each_label(home: Path, tmp_path: Path) -> None:
    rows = draw_rows(600, share_red=0.9)
    write_log(home, rows)
    colours = [None if number % 2 else row[0] for number, row in enumerate(rows)]
    sizes: list[int | None] = [int(row[1]) if number % 4 else 4 for number, row in enumerate(rows)]  # 4 is not known
    report = run_monitor(write_labels(tmp_path / "labels.parquet", colours, sizes))
    drifts = {drift.name.strip("()"): drift.is_drifted for drift in report.drifts}
    assert drifts == {"colour": True, "size": False}
    assert report.labelled is not None
    assert report.labelled.score.value == pytest.approx((1 + 0.75) / 2)


@pytest.mark.usefixtures("artifacts")
def test_a_shadow_agrees_where_all_labels_do(home: Path, tmp_path: Path) -> None:
    rows = draw_rows(200)
    others = [[colour, size if number % 4 else "1"] for number, (colour, size) in enumerate(rows)]
    write_log(home, rows)
    write_log(home, others, role="shadow", tag="people:two")
    labels = write_labels(tmp_path / "labels.parquet", [row[0] for row in rows], [int(row[1]) for row in rows])
    comparison = shadow_comparison.compare_versions("people", TAG, None, labels)
    share = np.mean([left == right for left, right in zip(rows, others, strict=True)])
    assert comparison.agreement == pytest.approx(share)
    assert (comparison.champion_score, comparison.challenger_score) == (1.0, pytest.approx((1 + share) / 2))
    assert any("mean accuracy" in line for line in shadow_comparison.describe_comparison(comparison))


def test_classes_of_labels_are_read_as_the_version_names_them() -> None:
    texts = ['["red", 3]', "[null, 2.0]", '["pink", null]']
    assert parse_classes(texts, OUTPUTS).tolist() == [[1, 2], [-100, 1], [2, -100]]


def test_a_champion_with_other_classes_is_aligned() -> None:
    known = (ClassOutput(name="colour", classes=("green", "red")), ClassOutput(name="size", classes=(3, 2, 1)))
    champion = Encoder.model_construct(class_outputs=known)
    shares = np.array([[[0.7, 0.3, 0.0], [0.5, 0.3, 0.2]]])
    np.testing.assert_allclose(
        align_class_outputs(champion, shares, OUTPUTS), [[[0.0, 0.3, 0.0, 0.7], [0.2, 0.3, 0.5, 0.0]]]
    )
