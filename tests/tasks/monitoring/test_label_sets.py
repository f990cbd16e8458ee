"""Delayed sets of labels are compared with predicted ones, whatever the order and the form of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bloomery.data_contracts.odcs.distributions import Bins, count_into_bins, reference_column
from bloomery.models.evaluation.drift_tests import measure_divergence
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.kinds.number import FittedNumbers
from bloomery.tasks.monitoring.delayed_labels import as_plain_labels, parse_set, read_labels
from bloomery.tasks.monitoring.reference_profile import single_labels
from bloomery.tasks.promote.gates import align_labels


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
