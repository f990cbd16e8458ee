"""The comparison of a shadow with the champion, from the log of their predictions."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.errors import DataMissing, ReleaseRefused
from bloomery.data_contracts.serving.prediction_log import LOG_FIELDS
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring import shadow_comparison


def write_log(home: Path, rows: list[tuple[str, str, str, object]]) -> None:
    """Logs predictions, given as (request, role, version, prediction)."""
    folder = home / "predictions" / "people" / "day=2026-01-01"
    folder.mkdir(parents=True, exist_ok=True)
    name = {float: "value", list: "labels", tuple: "tags"}.get(type(rows[0][3]), "label")
    zeros = [0] * len(rows)
    table = pa.table(
        {
            "at": pa.array(range(len(rows)), LOG_FIELDS[0].type),
            "request": [row[0] for row in rows],
            "row": pa.array(zeros, pa.int32()),
            "version": [row[2] for row in rows],
            "role": [row[1] for row in rows],
            "seconds": [0.001] * len(rows),
            "run_seconds": [2e-5 if row[1] == "shadow" else 1e-5 for row in rows],
            "batch_size": pa.array([1] * len(rows), pa.int32()),
            "prediction": [{name: row[3]} for row in rows],
        }
    )
    pq.write_table(table, folder / f"{len(list(folder.iterdir())):06d}-1-1.parquet")


def test_a_shadow_is_compared_on_rows_that_both_versions_have_predicted(home: Path, tmp_path: Path) -> None:
    champion_rows = [(f"r{n}", "champion", "people:a", "york" if n % 2 else "bath") for n in range(100)]
    shadow_rows = [(f"r{n}", "shadow", "people:b", "york" if n % 2 or n < 20 else "bath") for n in range(5, 100)]
    write_log(home, champion_rows)
    write_log(home, [*shadow_rows, ("r7", "shadow", "people:other", "bath")][:-1])
    pq.write_table(
        pa.table({"request": [f"r{n}" for n in range(50)], "label": ["york" if n % 2 else "bath" for n in range(50)]}),
        tmp_path / "labels.parquet",
    )
    comparison = shadow_comparison.compare_versions("people", "people:a", None, tmp_path / "labels.parquet")
    assert (comparison.num_rows, comparison.challenger) == (95, "people:b")
    assert comparison.agreement == pytest.approx(1 - 7 / 95)
    assert comparison.num_labelled == 45
    assert (comparison.champion_score, comparison.challenger_score) == (1.0, pytest.approx(1 - 7 / 45))
    assert comparison.degradation is not None
    assert comparison.degradation.low < 7 / 45 < comparison.degradation.high
    assert any("2.00x" in line for line in shadow_comparison.describe_comparison(comparison))
    shadow_comparison.require_agreement("people", "people:a", "people:b", 95, 0.9)
    with pytest.raises(ReleaseRefused, match="has predicted 95 rows"):
        shadow_comparison.require_agreement("people", "people:a", "people:b", 96, 0.9)
    with pytest.raises(ReleaseRefused, match=r"agree on 92\.63%"):
        shadow_comparison.require_agreement("people", "people:a", "people:b", 95, 0.95)


def test_regression_values_are_compared_by_their_difference(home: Path, tmp_path: Path) -> None:
    write_log(home, [(f"r{n}", "champion", "people:a", float(n)) for n in range(40)])
    write_log(home, [(f"r{n}", "shadow", "people:b", n + 2.0) for n in range(40)])
    pq.write_table(
        pa.table({"request": [f"r{n}" for n in range(40)], "label": [n + 1.5 + n % 2 for n in range(40)]}),
        tmp_path / "labels.parquet",
    )
    comparison = shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.parquet")
    assert (comparison.agreement, comparison.rms_difference) == (None, 2.0)
    assert comparison.challenger_score == pytest.approx(0.5)
    assert comparison.degradation is not None
    assert comparison.degradation.value < -0.5


def test_sets_are_compared_without_labels_that_neither_version_knows(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features.model_construct(label="tags", task="multilabel")
    encoders = {
        tag: Encoder.model_construct(features=features, classes=names) for tag, names in (("a", "xy"), ("b", "xz"))
    }
    monkeypatch.setattr(shadow_comparison, "read_encoder", lambda path: encoders[path.parent.parent.parent.name])
    monkeypatch.setattr(shadow_comparison, "read_set_separator", lambda tag, column: {"people:a": None}.get(tag, ";"))
    write_log(home, [(f"r{n}", "champion", "people:a", ["x", "y"] if n % 2 else ["x"]) for n in range(40)])
    write_log(home, [(f"r{n}", "shadow", "people:b", ["x"]) for n in range(40)])
    (tmp_path / "labels.csv").write_text("request,label\n" + "".join(f"r{n},x;rare\n" for n in range(40)))
    comparison = shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.csv")
    assert (comparison.agreement, comparison.num_labelled) == (0.5, 40)
    assert (comparison.champion_score, comparison.challenger_score) == (0.5, 1.0)


def test_tags_are_compared_in_their_order_and_without_labels(home: Path, tmp_path: Path) -> None:
    write_log(home, [(f"r{n}", "champion", "people:a", ("O", "B-X", "O", None)) for n in range(4)])
    tags = {0: ("B-X", "O", "O", None), 1: ("O", "B-X", None, None)}
    write_log(home, [(f"r{n}", "shadow", "people:b", tags.get(n, ("O", "B-X", "O", None))) for n in range(4)])
    assert shadow_comparison.compare_versions("people", "people:a", "people:b").agreement == 0.5
    with pytest.raises(DataMissing, match="tags that arrive later are not read"):
        shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.csv")


def test_missing_inputs_of_a_comparison_are_reported(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="no row was predicted"):
        shadow_comparison.compare_versions("people", "people:a", None)
    write_log(home, [("r", "champion", "people:a", "york"), ("r", "shadow", "people:b", "york")])
    pq.write_table(pa.table({"request": ["s"], "label": ["york"]}), tmp_path / "labels.parquet")
    with pytest.raises(DataMissing, match="no label for any of the 1 rows"):
        shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.parquet")
    pq.write_table(pa.table({"id": ["s"]}), tmp_path / "labels.parquet")
    with pytest.raises(DataMissing, match="has no column label, request"):
        shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "labels.parquet")
    with pytest.raises(DataMissing, match="cannot be read"):
        shadow_comparison.compare_versions("people", "people:a", "people:b", tmp_path / "nothing.parquet")
    assert settings().home == home
