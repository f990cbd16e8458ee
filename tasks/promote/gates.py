"""What a packaged version must reach before it may serve, told by what was measured of it and of the champion."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import ReleaseRefused
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
from bloomery.tasks.registry import model_registry as registry

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def require_score(bento: Bento, gates: Gates) -> None:
    """Afterwards it is known that the score is good enough.

    Raises:
        ReleaseRefused: the score on the held-out rows is not what the gates ask for.
    """
    task = bento.choice.candidates.trained.dataset.task
    measured = bento.choice.candidate.score.value
    if task == "classification":
        is_reached, gate, limit = measured >= gates.min_accuracy, "min_accuracy", gates.min_accuracy
    elif gates.max_error is None:
        return
    else:
        is_reached, gate, limit = measured <= gates.max_error, "max_error", gates.max_error
    if not is_reached:
        raise ReleaseRefused(
            f"{SCORE_NAMES[task]} is {format_score_value(task, measured)} on the held-out rows",
            required=f"at {'least' if task == 'classification' else 'most'} {format_score_value(task, limit)}",
            where=f"the recipe's gates.{gate}",
            remedy="train longer or on more data; or relax the gate, if less will do",
        )


def compare_with_champion(bento: Bento, former: ModelVersion | None) -> Interval | None:
    """How much worse than the champion `former` on the rows that are held out today, both as packaged.

    None where there is nothing to compare: no other champion, one that answers another kind of question, that reads
    other columns, or whose bento cannot be read. Whatever a former version holds, it must not stop the next one.
    """
    tag = registry.bento_of(former)
    if tag is None or tag == bento.tag:
        return None
    champion = read_bento_encoder(tag)
    if champion is None or champion.features.task != bento.choice.candidates.trained.dataset.task:
        return None
    theirs = predict_with_bento(tag, champion, read_held_out_rows(bento.choice))
    return None if theirs is None else _compared(bento, theirs)


def require_not_worse(bento: Bento, gates: Gates, former: ModelVersion | None, worse: Interval | None) -> None:
    """Requires that this version may replace the champion `former`; `worse` comes from `compare_with_champion`.

    Raises:
        ReleaseRefused: this version may be worse by more than the gates allow, or answers another kind of question.
    """
    tag = registry.bento_of(former)
    if tag is None or tag == bento.tag:
        return
    dataset = bento.choice.candidates.trained.dataset
    task = dataset.task
    champion = read_bento_encoder(tag)
    if champion is not None and champion.features.task != task:
        raise ReleaseRefused(
            f"champion {tag} is a {champion.features.task}, and this version is a {task}",
            required="a version that answers the question that its name is known for",
            where="the recipe's features.task and name",
            remedy="give the recipe another name: who asks the champion would not understand the answers",
        )
    limit, gate = (
        (gates.champion_drop, "champion_drop") if task == "classification" else (gates.champion_rise, "champion_rise")
    )
    if worse is not None and worse.high > limit:
        value, low, high = (format_degradation(task, one) for one in (worse.value, worse.low, worse.high))
        raise ReleaseRefused(
            f"against champion {tag} {SCORE_NAMES[task]} has a {DEGRADATION_NAMES[task]} of {value} "
            f"(95% interval {low} to {high})",
            required=f"an interval that ends below {format_degradation(task, limit)}",
            where=f"the {dataset.test.num_rows} held-out rows; the recipe's gates.{gate}",
            remedy="improve the model; or relax the gate, if the champion need not be matched",
        )


def _compared(bento: Bento, theirs: np.ndarray) -> Interval:
    """How much worse this version is than another that gave `theirs`, labels or figures, for the held-out rows."""
    from bloomery.models.evaluation.metrics import accuracy_drop, rmse_rise

    dataset = bento.choice.candidates.trained.dataset
    measured = read_measured_predictions(bento.choice)
    if dataset.task == "classification":
        truth, ours = (np.array(measured[name].to_pylist(), dtype=object) for name in ("truth", "answer"))
        return accuracy_drop(theirs == truth, ours == truth)
    features = read_encoder(settings().path(dataset.encoder_uri)).features
    order = bootstrap_order(dataset, features, measured[dataset.key].combine_chunks())
    truth, ours = (measured[name].to_numpy() for name in ("truth", "answer"))
    return rmse_rise(truth[order], theirs[order], ours[order])


def read_bento_encoder(tag: str) -> Encoder | None:
    """The encoder in a bento; None if this code cannot read it."""
    try:
        return read_encoder(artifacts_folder(tag) / "encoder.json")
    except (OSError, ValueError):
        return None


def predict_with_bento(tag: str, encoder: Encoder, rows: pa.Table) -> np.ndarray | None:
    """The labels or figures that a bento's own files give for raw rows; None if it cannot read them."""
    from bloomery.models.inference.outputs import compute_outputs, predictions_from
    from bloomery.models.inference.runtime import create_session

    folder = artifacts_folder(tag)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        x = encode(encoder, rows)
        is_row_by_row = manifest.get("is_row_by_row", False)
        network = create_session(folder / manifest.get("model", "model.onnx"))
        given = predictions_from(encoder, compute_outputs(network, x, is_row_by_row=is_row_by_row))
    except Exception:  # whatever a former version holds, it must not stop the next one
        return None
    if encoder.features.task == "regression":
        return given
    return np.array(encoder.classes, dtype=object)[given.argmax(axis=1)]
