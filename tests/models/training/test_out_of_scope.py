"""The shift of the class out of scope: as large as the lost accuracy of the other classes allows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from bloomery.models.training.config import Training
from bloomery.models.training.out_of_scope import choose_scope_shift, measure_scope, shift_class

LABEL = 2


def make_outputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """400 rows of classes 0 and 1 with margins over class 2, and 40 of class 2 that are decided for it seldom."""
    random = np.random.default_rng(seed)
    y = np.array([0, 1] * 200 + [LABEL] * 40)
    outputs = random.normal(size=(440, 3)).astype(np.float32)
    outputs[np.arange(400), y[:400]] += 6
    outputs[400:, LABEL] -= 0.5
    return outputs, y


@pytest.mark.parametrize("max_drop", [0.0, 0.004, 0.01, 0.05])
def test_the_accuracy_of_other_classes_drops_by_at_most_the_limit(max_drop: float):
    outputs, y = make_outputs()
    before = measure_scope(outputs, y, LABEL)
    outputs[:, LABEL] += choose_scope_shift(outputs, y, LABEL, max_drop)
    after = measure_scope(outputs, y, LABEL)
    assert before.in_scope - after.in_scope <= max_drop + 1e-9
    assert before.in_scope - after.in_scope > max_drop - 1 / 400 - 1e-9  # not one row less than allowed
    assert after.recall > before.recall


def test_a_larger_limit_detects_more():
    outputs, y = make_outputs()
    shifts = [choose_scope_shift(outputs, y, LABEL, max_drop) for max_drop in (0, 0.01, 0.1, 0.9)]
    assert shifts == sorted(shifts)
    assert 0 < shifts[0] < shifts[-1]


def test_without_right_rows_or_rows_out_of_scope_nothing_breaks():
    outputs, y = make_outputs()
    assert choose_scope_shift(outputs[400:], y[400:], LABEL, 0.01) == 0
    assert choose_scope_shift(outputs[:400], y[:400], LABEL, 0.01) > 0
    assert np.isnan(measure_scope(outputs[:400], y[:400], LABEL).recall)


def test_the_shift_becomes_part_of_the_head():
    network = nn.Sequential()
    network.head = nn.Linear(4, 3)
    x = torch.randn(5, 4)
    with torch.no_grad():
        before = network.head(x)
        shift_class(network, LABEL, 0.75)
        torch.testing.assert_close(network.head(x) - before, torch.tensor([0, 0, 0.75]).expand(5, 3))


def test_a_recipe_without_it_keeps_its_key():
    assert not {"out_of_scope", "length_bucketing"} & set(Training(epochs=1).identity())
    stated = Training.model_validate({"epochs": 1, "out_of_scope": {"label": "oos"}, "length_bucketing": False})
    assert stated.identity()["out_of_scope"] == {"label": "oos", "max_drop": 0.002}
    assert stated.identity()["length_bucketing"] is False
