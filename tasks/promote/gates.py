"""The gates of a release: its score, and its degradation from the champion on the test split."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import ReleaseRefused
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.records import Bento, Interval
from bloomery.data_contracts.records.score_format import (
    DEGRADATION_NAMES,
    SCORE_NAMES,
    format_degradation,
    format_score_value,
)
from bloomery.models.evaluation.gates import Gates
from bloomery.models.features.encoder import Encoder, encode, read_encoder
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.evaluation.held_out import read_held_out_rows, read_measured_predictions
from bloomery.tasks.evaluation.slices import bootstrap_order
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.registry import model_registry

if TYPE_CHECKING:
    from bloomery.tasks.tracking.model_versions import ModelVersion


def require_score(bento: Bento, gates: Gates) -> None:
    """Requires a score within the gates.

    Raises:
        ReleaseRefused: the score on the test split does not reach the gate.
    """
    task = bento.choice.candidates.trained.dataset.task
    score = bento.choice.candidate.score.value
    if task == "classification":
        passes, gate, limit = score >= gates.min_accuracy, "min_accuracy", gates.min_accuracy
    elif gates.max_error is None:
        return
    else:
        passes, gate, limit = score <= gates.max_error, "max_error", gates.max_error
    if not passes:
        raise ReleaseRefused(
            f"{SCORE_NAMES[task]} is {format_score_value(task, score)} on the held-out rows",
            required=f"at {'least' if task == 'classification' else 'most'} {format_score_value(task, limit)}",
            where=f"the recipe's gates.{gate}",
            remedy="train longer or on more data; or relax the gate, if a lower score is enough",
        )


def compare_with_champion(bento: Bento, champion: ModelVersion | None) -> Interval | None:
    """The degradation from `champion` to this version on the current test rows, both as packaged.

    None if they cannot be compared: there is no other champion, or it has another task, reads other columns, or its
    bento cannot be read. A broken champion must not block its successor.
    """
    tag = model_registry.bento_of(champion)
    if tag is None or tag == bento.tag:
        return None
    encoder = read_bento_encoder(tag)
    if encoder is None or encoder.features.task != bento.choice.candidates.trained.dataset.task:
        return None
    predictions = predict_with_bento(tag, encoder, read_held_out_rows(bento.choice))
    return None if predictions is None else _measure_degradation(bento, predictions)


def require_not_worse(bento: Bento, gates: Gates, champion: ModelVersion | None, degradation: Interval | None) -> None:
    """Requires that this version may replace `champion`; `degradation` comes from `compare_with_champion`.

    Raises:
        ReleaseRefused: the degradation may exceed the gate, or the champion has another task.
    """
    tag = model_registry.bento_of(champion)
    if tag is None or tag == bento.tag:
        return
    dataset = bento.choice.candidates.trained.dataset
    task = dataset.task
    encoder = read_bento_encoder(tag)
    if encoder is not None and encoder.features.task != task:
        raise ReleaseRefused(
            f"champion {tag} is a {encoder.features.task}, and this version is a {task}",
            required="a version with the same task as the champion of its name",
            where="the recipe's features.task and name",
            remedy="give the recipe another name: clients of the champion would not understand the predictions",
        )
    gate = "champion_drop" if task == "classification" else "champion_rise"
    limit = gates.champion_drop if task == "classification" else gates.champion_rise
    if degradation is not None and degradation.high > limit:
        value, low, high = (
            format_degradation(task, number) for number in (degradation.value, degradation.low, degradation.high)
        )
        raise ReleaseRefused(
            f"against champion {tag} {SCORE_NAMES[task]} has a {DEGRADATION_NAMES[task]} of {value} "
            f"(95% interval {low} to {high})",
            required=f"an interval that ends below {format_degradation(task, limit)}",
            where=f"the {dataset.test.num_rows} held-out rows; the recipe's gates.{gate}",
            remedy="improve the model; or relax the gate, if the champion need not be matched",
        )


def _measure_degradation(bento: Bento, champion_predictions: np.ndarray) -> Interval:
    """The degradation from `champion_predictions`, labels or numbers, to the measured ones on the test rows."""
    from bloomery.models.evaluation.metrics import accuracy_drop, rmse_rise

    dataset = bento.choice.candidates.trained.dataset
    table = read_measured_predictions(bento.choice)
    if dataset.task == "classification":
        truth, predictions = (np.array(table[name].to_pylist(), dtype=object) for name in ("truth", "prediction"))
        return accuracy_drop(champion_predictions == truth, predictions == truth)
    features = read_encoder(settings().path(dataset.encoder_uri)).features
    order = bootstrap_order(dataset, features, table[key_column(dataset.key)].combine_chunks())
    truth, predictions = (table[name].to_numpy() for name in ("truth", "prediction"))
    return rmse_rise(truth[order], champion_predictions[order], predictions[order])


def read_bento_encoder(tag: str) -> Encoder | None:
    """The encoder of a bento; None if this code cannot read it."""
    try:
        return read_encoder(artifacts_folder(tag) / "encoder.json")
    except (OSError, ValueError):
        return None


def predict_with_bento(tag: str, encoder: Encoder, rows: pa.Table) -> np.ndarray | None:
    """Predicts raw rows with the files of a bento, as labels or numbers; None if they cannot be used."""
    from bloomery.models.inference.outputs import compute_outputs, predictions_from
    from bloomery.models.inference.runtime import create_session

    folder = artifacts_folder(tag)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        x = encode(encoder, rows)
        is_row_by_row = manifest.get("is_row_by_row", False)
        session = create_session(folder / manifest.get("model", "model.onnx"))
        predictions = predictions_from(encoder, compute_outputs(session, x, is_row_by_row=is_row_by_row))
    except Exception:  # a broken champion must not block its successor
        return None
    if encoder.features.task == "regression":
        return predictions
    return np.array(encoder.classes, dtype=object)[predictions.argmax(axis=1)]
