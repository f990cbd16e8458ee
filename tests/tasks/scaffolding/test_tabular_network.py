"""The drafted network of a table is valid, and smaller where there are many rows."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from bloomery.models.compression.config import Compression
from bloomery.models.networks.config import Model, TabularEnsemble
from bloomery.models.training.config import Training
from bloomery.tasks.scaffolding.tabular_network import draft_tabular_network


@pytest.mark.parametrize(
    ("num_rows", "models", "members", "epochs"),
    [(1, 4, 32, 150), (1_999, 4, 32, 150), (9_000, 4, 16, 111), (40_000, 1, 16, 25), (1_000_000, 1, 8, 8)],
)
def test_it_suits_the_number_of_rows(num_rows: int, models: int, members: int, epochs: int) -> None:
    model_section, training_section, compression_section = draft_tabular_network(num_rows, 16)
    model = TypeAdapter(Model).validate_python(dict(model_section))
    training = Training.model_validate(dict(training_section))
    compression = Compression.model_validate(dict(compression_section))
    assert isinstance(model, TabularEnsemble)
    assert (model.trees.models, model.network.members) == (models, members)
    assert (training.epochs, training.batch_size, training.schedule) == (epochs, 32, "constant")
    assert training.patience is not None
    assert "best_by" in training.model_fields_set  # otherwise the recipe's score would select the epoch
    assert model.linear
    assert model.decisions == "likeliest"
    names = [spec.name for spec in compression.candidates or ()]
    assert names == ["fp32", "pruned-25", "pruned-50", "pruned-75", "pruned-90", "student"]
    assert compression.fine_tune.epochs == min(max(500_000 // num_rows, 8), 60)


def test_decisions_about_a_rare_class_suit_the_score() -> None:
    model, _, _ = draft_tabular_network(1_000, 16, is_skewed=True)
    assert TypeAdapter(Model).validate_python(dict(model)).decisions == "score"
