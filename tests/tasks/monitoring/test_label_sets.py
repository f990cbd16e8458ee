"""Delayed sets of labels are compared with predicted ones, whatever the order and the form of the file."""

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

from bloomery.data_contracts.monitoring import Monitor, MonitoringReport, ReferenceProfile, VersionReference
from bloomery.data_contracts.odcs.distributions import Bins, count_into_bins, reference_column
from bloomery.data_contracts.records.records import Interval
from bloomery.models.evaluation.drift_tests import measure_divergence
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.kinds.number import FittedNumbers
from bloomery.tasks.monitoring import delayed_labels
from bloomery.tasks.monitoring import monitor as monitor_module
from bloomery.tasks.monitoring.delayed_labels import as_plain_labels, parse_set, read_labels, read_set_separator
from bloomery.tasks.monitoring.monitor import monitor_window
from bloomery.tasks.monitoring.reference_profile import known_tags, single_labels
from bloomery.tasks.promote.gates import align_labels

NAMES = tuple("abcdefgh")
NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)


def test_sets_are_equal_as_texts_in_any_order_and_from_any_file(tmp_path: Path) -> None:
    rows = {"request": ["a", "b", "c"], "row": [0, 0, 0]}
    pq.write_table(pa.table({**rows, "label": [["y", "x"], [], ["x", "x"]]}), tmp_path / "labels.parquet")
    (tmp_path / "labels.csv").write_text('request,label\na,"[""x"", ""y""]"\nb,[]\nc,x\n')
    expected = ['["x", "y"]', "[]", '["x"]']
    for name in ("labels.parquet", "labels.csv"):
        table = read_labels(tmp_path / name, is_multilabel=True).sort_by("request")
        assert table["label"].to_pylist() == expected
    predictions = pa.chunked_array([[["x", "y"], [], ["x"]]])
    assert as_plain_labels(predictions).to_pylist() == expected
    assert [parse_set(text) for text in expected] == [["x", "y"], [], ["x"]]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["3", "", "1;2", '"[2, 1]"'], ['["3"]', "[]", '["1", "2"]', '["1", "2"]']),
        (["3", "", "12"], ['["3"]', "[]", '["12"]']),
        (["", "", ""], ["[]", "[]", "[]"]),
        (["b; a ;b", " ", "[x];[y]"], ['["a", "b"]', "[]", '["[x]", "[y]"]']),
    ],
)
def test_sets_in_csv_may_be_numbers_blank_or_have_the_separator_of_the_recipe(
    labels: list[str], expected: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("request,label\n" + "".join(f"r{number},{text}\n" for number, text in enumerate(labels)))
    table = read_labels(path, is_multilabel=True, separator=";").sort_by("request")
    assert table["label"].to_pylist() == expected


def test_whole_numbers_in_parquet_are_sets_of_one_label(tmp_path: Path) -> None:
    pq.write_table(pa.table({"request": ["a", "b", "c"], "label": [3, None, 1]}), tmp_path / "labels.parquet")
    table = read_labels(tmp_path / "labels.parquet", is_multilabel=True).sort_by("request")
    assert table["label"].to_pylist() == ['["3"]', '["1"]']  # null has not arrived


@pytest.fixture
def monitor_sets(home: Path, tmp_path: Path, contract_of: Any) -> Callable[..., MonitoringReport]:
    """Monitors logged predictions of sets with the labels that have arrived, as a table or as the text of a CSV file.

    The version knows the labels of `NAMES` and has had 90% of the sets right; its recipe separates them by a semicolon.
    """
    values = pa.array([[name] for name in NAMES] * 50, pa.list_(pa.string()))
    counts = count_into_bins(Bins(values=NAMES), single_labels(values))
    confidences = count_into_bins(Bins(edges=(0.5,)), pa.array([0.9]))
    reference = VersionReference(
        split="train",
        columns={},
        predictions=ReferenceProfile(num_rows=counts.num_rows, shares=reference_column(counts)),
        confidence=ReferenceProfile(num_rows=1, shares=reference_column(confidences)),
        task="multilabel",
        label="tags",
        score=Interval(value=0.9, low=0.88, high=0.92),
    )
    artifacts = Path(os.environ["BENTOML_HOME"]) / "bentos" / "films" / "one" / "src" / "artifacts"
    artifacts.mkdir(parents=True)
    (artifacts / "reference.json").write_text(reference.model_dump_json(by_alias=True, exclude_defaults=True))
    items = {"logicalType": "string"}
    contract = contract_of({"name": "tags", "logicalType": "array", "required": True, "items": items})
    (artifacts / "contract.json").write_text(contract.model_dump_json(by_alias=True, exclude_defaults=True))

    def monitor(predictions: list[list[str]], arrived: pa.Table | str) -> MonitoringReport:
        num_rows = len(predictions)
        sets = pa.array(predictions, pa.list_(pa.string()))
        shares = pa.array([[0.9] * len(NAMES)] * num_rows)
        table = pa.table(
            {
                "at": pa.array([NOW - timedelta(hours=1)] * num_rows, pa.timestamp("us", "UTC")),
                "request": [f"r{number}" for number in range(num_rows)],
                "row": pa.array([0] * num_rows, pa.int32()),
                "version": ["films:one"] * num_rows,
                "role": ["champion"] * num_rows,
                "seconds": [0.002] * num_rows,
                "columns": [{"x": 1.0}] * num_rows,
                "prediction": pa.StructArray.from_arrays([sets, shares], ["labels", "probabilities"]),
            }
        )
        folder = home / "predictions" / "films" / f"day={NOW:%Y-%m-%d}"
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / "000000-1-1.parquet")
        path = tmp_path / ("labels.csv" if isinstance(arrived, str) else "labels.parquet")
        path.write_text(arrived) if isinstance(arrived, str) else pq.write_table(arrived, path)
        version: Any = SimpleNamespace(name="films", version="3", tags={"bento": "films:one"})
        settings = Monitor(min_rows=50, min_labels=10, labels=str(path))
        return monitor_window(version, settings, NOW - timedelta(days=1), NOW)

    return monitor


def make_sets(num_rows: int) -> list[list[str]]:
    """Sets of which most are those of one row or two."""
    is_in = np.random.default_rng(0).random((num_rows, len(NAMES))) < 0.5
    return [[name for name, mark in zip(NAMES, row, strict=True) if mark] for row in is_in.tolist()]


def test_a_drop_of_the_accuracy_of_sets_raises_an_alert(monitor_sets: Callable[..., MonitoringReport]) -> None:
    truth = make_sets(300)
    predictions = [truth[(number + 1) % 300] if number % 4 == 0 else labels for number, labels in enumerate(truth)]
    report = monitor_sets(predictions, pa.table({"request": [f"r{number}" for number in range(300)], "label": truth}))
    assert report.labelled is not None
    assert report.labelled.score.value == pytest.approx(0.75, abs=0.01)
    assert (report.labelled.weighted_score, report.labelled.coverage) == (None, 1.0)
    assert any("subset accuracy is 75" in alert.message for alert in report.alerts)


def test_sets_arrive_in_the_form_of_the_recipe_and_labels_that_it_left_out_do_not_count(
    monitor_sets: Callable[..., MonitoringReport], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {"data": {"source": "films.csv", "lists": {"tags": {"separator": ";", "values": list(NAMES)}}}}
    monkeypatch.setattr(delayed_labels, "read_bento_provenance", lambda tag: SimpleNamespace(recipe=recipe))
    truth = make_sets(100)
    texts = [";".join([*labels, "rare"] if number % 10 == 0 else labels) for number, labels in enumerate(truth)]
    csv = "request,label\n" + "".join(f"r{number},{text}\n" for number, text in enumerate(texts))
    report = monitor_sets(truth, csv)
    assert report.labelled is not None
    assert (report.labelled.score.value, report.labelled.num_labelled) == (1.0, 100)
    assert "10 labels in sets are left out, since the version does not know them: rare" in report.notes


def test_the_separator_is_that_of_the_recipe_of_a_bento(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_set_separator("films:none", "tags") is None
    for recipe, expected in (
        ({"data": {"lists": {"tags": {"separator": "|"}}}}, "|"),
        ({"data": {"lists": {"tags": {"columns": ["a", "b"]}}}}, None),
        ({"data": {"lists": {"other": {"separator": "|"}}}}, None),
        ({"data": {"lists": None}}, None),
        ({}, None),
    ):
        provenance = SimpleNamespace(recipe=recipe)
        monkeypatch.setattr(delayed_labels, "read_bento_provenance", lambda tag, provenance=provenance: provenance)
        assert read_set_separator("films:one", "tags") == expected


def test_a_version_that_predicts_no_label_any_more_raises_an_alert(
    monitor_sets: Callable[..., MonitoringReport],
) -> None:
    report = monitor_sets([[]] * 200, pa.table({"request": ["r0"], "label": [["a"]]}))
    assert any(alert.message.startswith("(prediction) has drifted") for alert in report.alerts)


def test_labels_of_classes_stay_as_they_are() -> None:
    labels = pa.array(['["x"]', "y"])
    assert as_plain_labels(labels) is labels
    assert single_labels(labels) is labels
    assert single_labels(pa.array([["a", "b"], [], ["a"]])).to_pylist() == ["a", "b", None, "a"]


def test_a_model_that_predicts_no_label_has_a_profile_and_drifts_from_one_that_does() -> None:
    bins = Bins(values=("a", "b"))
    none, some = (pa.array(sets * 300, pa.list_(pa.string())) for sets in ([[]], [["a"], ["b"], ["a", "b"], []]))
    for sets in (none, none.slice(7)):
        counts = count_into_bins(bins, single_labels(sets))
        assert (counts.num_rows, counts.counts, reference_column(counts).null_share) == (len(sets), (0, 0), 1.0)
    reference = count_into_bins(bins, single_labels(some))
    assert (reference.counts, reference.num_null) == ((600, 600), 300)
    divergence = measure_divergence(reference_column(reference), reference.num_rows, counts)
    assert divergence.psi > 1
    assert divergence.p_value < 1e-6


def test_a_champion_with_other_labels_has_probability_0_for_those_that_it_does_not_know() -> None:
    features = Features.model_validate(
        {"key": "id", "label": "tags", "task": "multilabel", "inputs": [{"kind": "number", "columns": ["x"]}]}
    )
    encoder = Encoder.model_construct(features=features, fitted=(FittedNumbers.model_construct(),), classes=("a", "b"))
    aligned = align_labels(encoder, np.array([[0.2, 0.9]]), ["b", "c", "a"])
    assert aligned.tolist() == [[0.9, 0.0, 0.2]]


def test_words_that_are_cut_off_do_not_count_as_missing_tags() -> None:
    kind = pa.list_(pa.string())
    logged = pa.array([["O", "B-X", None, None], [], None, [None], ["O", None]], kind)
    expected = [["O", "B-X"], [], [], [], ["O"]]
    assert known_tags(logged).to_pylist() == expected
    assert known_tags(logged.slice(3)).to_pylist() == expected[3:]
    rows = pa.table({"prediction": pa.StructArray.from_arrays([logged], ["tags"])})
    reference = VersionReference.model_construct(task="tagging", output_profiles=None)
    assert monitor_module._extract_predictions(rows, "prediction", reference).to_pylist() == [
        "O",
        "B-X",
        None,
        None,
        None,
        "O",
    ]
