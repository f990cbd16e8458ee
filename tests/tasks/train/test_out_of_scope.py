"""The class out of scope must exist, and its shift is part of the network before that is written."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.training.config import Training
from bloomery.models.training.data.batches import Examples
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import out_of_scope

DATASET = SimpleNamespace(classes=("a", "b", "oos"))


class Linear(nn.Module):
    """The identity of rows of three values, with a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(3))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x)


def test_a_class_without_training_rows_is_refused_before_training():
    training = Training.model_validate({"epochs": 1, "out_of_scope": {"label": "other"}})
    with pytest.raises(RecipeInvalid, match="'other' has no training rows"):
        out_of_scope.require_class(DATASET, training)
    out_of_scope.require_class(DATASET, training.model_copy(update={"out_of_scope": None}))


def test_the_shift_is_chosen_on_the_validation_split_and_logged(monkeypatch: pytest.MonkeyPatch):
    logged: dict[str, object] = {}
    monkeypatch.setattr(mlflow_runs, "log_params", lambda run_id, values: logged.update(values))
    monkeypatch.setattr(mlflow_runs, "log_metrics", lambda run_id, values, step: logged.update(values))
    # Margins of the rows in scope over `oos` are 1, 2, 3 and 4; a quarter of them may be lost.
    x = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 4, 0], [0.5, 0, -0.5], [2, 0, 1.8]])
    rows = Examples(x, torch.tensor([0, 0, 1, 1, 2, 2]), np.arange(6))
    training = Training.model_validate({"epochs": 1, "out_of_scope": {"label": "oos", "max_drop": 0.25}})
    run = SimpleNamespace(run_id="run", dataset=DATASET, training=training, splits=SimpleNamespace(val=rows))
    network = Linear()
    out_of_scope.shift_decisions(run, network)
    assert network.head.bias.tolist() == [0, 0, 1.5]
    assert logged["out_of_scope_shift"] == "1.5000"
    assert (logged["val_in_scope_accuracy"], logged["val_in_scope_accuracy_unshifted"]) == (0.75, 1.0)
    assert (logged["val_out_of_scope_recall"], logged["val_out_of_scope_recall_unshifted"]) == (1.0, 0.0)
