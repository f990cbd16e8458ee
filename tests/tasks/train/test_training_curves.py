"""Curves of a training with stages."""

from __future__ import annotations

from typing import Any

import pytest

from bloomery.data_contracts.records.scores import Score
from bloomery.models.training.loop import EpochResult, StepProgress
from bloomery.models.training.stages import PlannedEpoch
from bloomery.tasks.orchestration import events
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.training_curves import TrainingCurves


def test_losses_without_labels_have_names_of_their_own_and_steps_go_on(monkeypatch: pytest.MonkeyPatch):
    points: list[tuple[int, dict[str, float]]] = []
    monkeypatch.setattr(mlflow_runs, "log_metric_steps", lambda run_id, values: points.extend(values))
    notes: list[Any] = []
    unsubscribe = events.subscribe(notes.append)
    plan = [PlannedEpoch("contrastive", 300, 10), PlannedEpoch("task", 100, 14), PlannedEpoch("task", 100, 18)]
    curves = TrainingCurves("run", Score(name="accuracy"), 1.0, plan)
    curves.on_epoch(EpochResult(1, 4.0, 3.5, 3.5, 0.1))
    curves.on_step(StepProgress(12, 18, 2, 0.9, 0.05))
    curves.on_epoch(EpochResult(2, 0.8, 0.7, 0.9, 0.05))
    curves.close()
    unsubscribe()
    first, step, second = (values for _, values in points if "system/cpu_utilization_percentage" not in values)
    assert first == {"pretraining_loss": 4.0, "pretraining_val_loss": 3.5, "learning_rate": 0.1}
    assert step == {"step_loss": 0.9, "step_learning_rate": 0.05}
    assert (second["train_loss"], second["val_accuracy"]) == (0.8, 0.9)
    assert [(event.done, event.total) for event in notes if isinstance(event, events.Progress)] == [
        (10, 18),
        (12, 18),
        (14, 18),
    ]
