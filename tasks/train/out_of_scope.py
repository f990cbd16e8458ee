"""Shifts the decisions of a trained network towards the class out of scope, as the recipe states."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.scope_shift import ScopeShift
from bloomery.models.training.config import Training
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit
from bloomery.tasks.train.training_run import TrainingRun

if TYPE_CHECKING:
    from torch import nn


def require_class(dataset: Dataset, training: Training) -> None:
    """Raises RecipeInvalid if the class out of scope has no training rows, before anything is trained."""
    if training.out_of_scope is None or training.out_of_scope.label in dataset.classes:
        return
    shown = ", ".join(map(str, dataset.classes[:10])) + (", …" if len(dataset.classes) > 10 else "")
    raise RecipeInvalid(
        f"the class {training.out_of_scope.label!r} has no training rows",
        required=f"one of {len(dataset.classes)} classes: {shown}",
        where="training.out_of_scope.label in the recipe",
        remedy="correct the label",
    )


def shift_decisions(run: TrainingRun, network: nn.Module) -> ScopeShift | None:
    """Changes the head of `network` in place, by the validation split, and logs the shift and its effect."""
    from bloomery.models.training.loop import predict
    from bloomery.models.training.out_of_scope import choose_scope_shift, measure_scope, shift_class

    options = run.training.out_of_scope
    if options is None:
        return None
    label = run.dataset.classes.index(options.label)
    rows = fit.sample_validation_rows(run.dataset, run.splits.val)
    outputs_NK, y = predict(network, rows.x).numpy(), rows.y.numpy()
    shift = choose_scope_shift(outputs_NK, y, label, options.max_drop)
    before = measure_scope(outputs_NK, y, label)
    shift_class(network, label, shift)
    outputs_NK[:, label] += shift
    after = measure_scope(outputs_NK, y, label)
    metrics = {
        "val_in_scope_accuracy": after.in_scope,
        "val_out_of_scope_recall": after.recall,
        "val_in_scope_accuracy_unshifted": before.in_scope,
        "val_out_of_scope_recall_unshifted": before.recall,
    }
    mlflow_runs.log_params(run.run_id, {"out_of_scope_shift": f"{shift:.4f}"})
    defined = {name: value for name, value in metrics.items() if not math.isnan(value)}
    mlflow_runs.log_metrics(run.run_id, defined, step=0)
    return ScopeShift(label=options.label, max_drop=options.max_drop, value=shift)
