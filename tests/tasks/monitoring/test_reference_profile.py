"""The reference profile of a version: its training rows, column by column, and its own predictions."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import Choice, Privacy, Release
from bloomery.data_contracts.records.scores import Score
from bloomery.models.evaluation.metrics import proportion
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import fit, partial_statistics
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.monitoring.reference_profile import build_reference

NUM, NUM_TRAIN = 1_000, 600
RNG = np.random.default_rng(0)
X = RNG.normal(size=NUM)
ROWS = pa.table(
    {
        "id": np.arange(NUM),
        "x": pa.array(X, mask=np.arange(NUM) % 10 == 0),
        "town": RNG.choice(["bath", "york"], NUM, p=[0.25, 0.75]),
        "zone": RNG.integers(0, 80, NUM) ** 2 // 80,
        "note": [f"note {'o' * (place % 90)} {place}" for place in range(NUM)],
        "wave": [[float(place), 2.0 * place] for place in range(NUM)],
        "who": [f"person {place % 5}" for place in range(NUM)],
        "when": [datetime(2026, 1, 1, tzinfo=UTC)] * NUM,
        "label": RNG.choice(["no", "yes"], NUM),
    }
)
PROPERTIES: tuple[dict[str, Any], ...] = (
    {"name": "id", "logicalType": "integer", "primaryKey": True, "primaryKeyPosition": 1},
    {"name": "x", "logicalType": "number"},
    {"name": "town", "logicalType": "string", "required": True},
    {"name": "zone", "logicalType": "integer", "required": True},
    {"name": "note", "logicalType": "string", "required": True},
    {"name": "wave", "logicalType": "array", "required": True, "items": {"logicalType": "number"}},
    {
        "name": "who",
        "logicalType": "string",
        "required": True,
        "customProperties": [{"property": "personal", "value": "hash"}],
    },
    {"name": "when", "logicalType": "timestamp", "required": True},
    {"name": "label", "logicalType": "string", "required": True},
)
INPUTS = ("x", "town", "zone", "note", "wave", "who", "when")


@pytest.fixture
def choice(home: Path, release: Release, contract_of: Callable[..., Contract]) -> Choice:
    """A chosen candidate that was trained on the first rows; only some of its inputs have a feature config."""
    folder = home / "stages" / "made"
    folder.mkdir(parents=True)
    pq.write_table(ROWS, folder / "rows.parquet")
    pq.write_table(ROWS.select(["id"]).slice(0, NUM_TRAIN), folder / "train.parquet")
    pq.write_table(ROWS.select(["id"]).slice(NUM_TRAIN), folder / "test.parquet")
    confidences = RNG.uniform(0.5, 1, 400)
    answers: dict[str, Any] = {
        "id": np.arange(NUM_TRAIN, NUM),
        "truth": ["yes"] * 400,
        "prediction": ["yes"] * 100 + ["no"] * 300,
    }
    shares = pa.array(
        [
            [1 - confidence, confidence] if answer == "yes" else [confidence, 1 - confidence]
            for confidence, answer in zip(confidences, answers["prediction"], strict=True)
        ]
    )
    pq.write_table(pa.table({**answers, "probabilities": shares}), folder / "predictions.parquet")
    categories = {"kind": "category", "columns": ["town", "zone"]}
    features = Features.model_validate({"key": "id", "label": "label", "inputs": [categories]})
    summary = next(iter(partial_statistics(features, ROWS.to_batches())))
    (folder / "encoder.json").write_text(fit(features, summary["statistics"].to_pylist()).model_dump_json())
    folder_uri = str(folder.relative_to(settings().home))
    released = release.bento.choice
    dataset = released.candidates.trained.dataset
    checked = dataset.valid_rows.model_copy(
        update={"uri": f"{folder_uri}/rows.parquet", "contract": contract_of(*PROPERTIES)}
    )
    dataset = dataset.model_copy(
        update={
            "valid_rows": checked,
            "train": dataset.train.model_copy(update={"uri": f"{folder_uri}/train.parquet"}),
            "test": dataset.test.model_copy(update={"uri": f"{folder_uri}/test.parquet"}),
            "encoder_uri": f"{folder_uri}/encoder.json",
            "inputs": INPUTS,
            "classes": ("no", "yes"),
        }
    )
    trained = released.candidates.trained.model_copy(update={"dataset": dataset})
    candidate = released.candidate.model_copy(update={"predictions_uri": f"{folder_uri}/predictions.parquet"})
    options = released.candidates.model_copy(update={"trained": trained})
    return released.model_copy(update={"candidate": candidate, "candidates": options})


def test_each_column_is_profiled_over_the_training_rows(choice: Choice) -> None:
    reference = build_reference(choice)
    assert reference.split == "train"
    assert list(reference.columns) == ["x", "town", "zone", "note", "wave"]  # neither a personal column nor a time
    assert {name: profile.measure for name, profile in reference.columns.items() if profile.measure != "value"} == {
        "note": "length",
        "wave": "mean",
    }
    assert all(profile.num_rows == NUM_TRAIN for profile in reference.columns.values())
    train = ROWS.slice(0, NUM_TRAIN)
    x = reference.columns["x"].shares
    assert x.null_share == 0.1
    assert len(x.shares) == 100
    assert max(x.shares) < 0.02
    assert x.edges is not None
    assert x.edges[49] == pytest.approx(np.median(train["x"].drop_null().to_numpy()), abs=0.02)
    town = reference.columns["town"].shares
    assert town.values == ("bath", "york")
    assert town.shares[0] == pytest.approx(train["town"].to_pylist().count("bath") / NUM_TRAIN)
    # Categories that are numbers: the most frequent have a bin each, the others share one.
    zone = reference.columns["zone"].shares
    assert zone.values is not None
    assert len(zone.values) == 50
    assert 0 < zone.other_share < 0.2
    wave = reference.columns["wave"].shares
    assert wave.edges is not None
    assert wave.edges[-1] < 1.5 * NUM_TRAIN


def test_predictions_are_profiled_over_the_held_out_rows(choice: Choice) -> None:
    reference = build_reference(choice)
    assert (reference.predictions.shares.values, reference.predictions.shares.shares) == (("no", "yes"), (0.75, 0.25))
    assert reference.confidence is not None
    assert reference.confidence.shares.edges is not None
    assert 0.5 < reference.confidence.shares.edges[0] < 0.52
    assert reference.score == choice.candidate.score


def test_the_reference_is_the_accuracy_whatever_the_score_of_the_recipe_is(choice: Choice) -> None:
    trained = choice.candidates.trained.model_copy(update={"stated_score": Score(name="log_loss")})
    options = choice.candidates.model_copy(update={"trained": trained})
    assert build_reference(choice.model_copy(update={"candidates": options})).score == proportion(100, 400)


def test_after_private_training_no_training_row_is_profiled(choice: Choice) -> None:
    trained = choice.candidates.trained.model_copy(update={"privacy": Privacy(epsilon=3.0, delta=1e-5)})
    options = choice.candidates.model_copy(update={"trained": trained})
    reference = build_reference(choice.model_copy(update={"candidates": options}))
    assert reference.split == "test"
    assert reference.columns["wave"].num_rows == NUM - NUM_TRAIN
    edges = reference.columns["wave"].shares.edges
    assert edges is not None
    assert edges[0] >= 1.5 * NUM_TRAIN
