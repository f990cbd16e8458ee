"""A candidate that is trained again gets a shift of its own for the class out of scope."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from bloomery.data_contracts.records.scope_shift import ScopeShift
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Mlp
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.loop import predict
from bloomery.models.training.out_of_scope import ScopeClass, choose_scope_shift, measure_scope
from bloomery.tasks.compress.candidate_builder import _remove_scope_shift

LABEL, MAX_DROP = 2, 0.1
BLUEPRINT = Blueprint(config=Mlp(kind="mlp", hidden=(64,)), layout=Layout(kind="flat", shape=(70,)), num_outputs=3)


@pytest.fixture(scope="module")
def rows() -> Examples:
    """Rows of two classes that one value separates, and of a third class at random."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(300, 70)), random.integers(0, 3, 300)
    x[:, 0] = np.where(y == 2, random.normal(size=300), np.where(y == 1, 2, -2))
    return Examples(torch.from_numpy(x).float(), torch.from_numpy(y), np.arange(300))


@pytest.mark.parametrize(
    "steps",
    [
        {"quantization_aware": True, "quantize": "static"},
        {"factorize": 0.5},  # divides the head, too
        {"prune": {"ratio": 0.5}},
        {"sparsify": {"density": 0.5}},
        {"student": {"model": {"kind": "mlp", "hidden": [8]}}},
    ],
    ids=lambda steps: next(iter(steps)),
)
def test_the_shift_is_chosen_after_the_last_training(rows: Examples, steps: dict[str, Any]):
    torch.manual_seed(0)
    blueprint = BLUEPRINT.model_copy(update={"num_outputs": 3})
    network = build_network(blueprint).eval()
    compression = Compression(fine_tune=Loop(epochs=2, batch_size=50, learning_rate=0.01))
    spec = CandidateSpec.model_validate({"name": "smaller", **steps})
    outputs, shifts = [], []
    for scope in (None, ScopeClass(LABEL, MAX_DROP)):
        fine_tuning = FineTuning(rows, rows, network, compression, scope=scope, on_shift=shifts.append)
        outputs.append(predict(compress_network(network, blueprint, spec, fine_tuning), rows.x).numpy())
    unshifted, shifted = outputs
    shift = choose_scope_shift(unshifted, rows.y.numpy(), LABEL, MAX_DROP)
    assert shift > 0
    assert shifts == [shift]
    np.testing.assert_allclose(shifted - unshifted, np.tile([0, 0, shift], (300, 1)), atol=1e-4)
    before, after = (measure_scope(values, rows.y.numpy(), LABEL) for values in outputs)
    assert before.in_scope - MAX_DROP <= after.in_scope <= before.in_scope
    assert after.recall > before.recall


def test_the_shift_of_the_trained_network_is_removed_before():
    network = build_network(BLUEPRINT)
    assert isinstance(network.head, torch.nn.Linear)
    bias = network.head.bias.detach().clone()
    dataset = SimpleNamespace(classes=("a", "b", "oos"))
    shift = ScopeShift(label="oos", max_drop=MAX_DROP, value=1.5)
    scope = _remove_scope_shift(SimpleNamespace(dataset=dataset, scope_shift=shift), network)
    assert scope == ScopeClass(LABEL, MAX_DROP)
    torch.testing.assert_close(network.head.bias.detach(), bias - torch.tensor([0, 0, 1.5]))
    assert _remove_scope_shift(SimpleNamespace(dataset=dataset, scope_shift=None), network) is None
