"""The network for flat vectors: learns, shrinks, is exported and quantized like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from models.batches import Examples
from models.config import Loop, Mlp
from models.export import TOLERANCE, export
from models.networks import Blueprint, build, num_parameters, read_network, write_network
from models.pruning import prune
from models.quantization import quantize
from models.runtime import answer, session
from models.training import evaluate, train

NORMS = ("batch", "none")


def blueprint_of(norm: str = "batch", hidden: tuple[int, ...] = (32, 16)) -> Blueprint:
    config = Mlp.model_validate({"kind": "mlp", "hidden": hidden, "norm": norm})
    return Blueprint(config=config, input_shape=(6,), num_classes=2)


@pytest.fixture(scope="module")
def rows() -> Examples:
    x = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    return Examples(x, (x[:, 0] * x[:, 1] > 0).long(), np.arange(2000))


@pytest.mark.parametrize("norm", NORMS)
def test_it_learns_what_no_linear_map_can_and_keeps_it_when_pruned_and_quantized(norm, rows, tmp_path: Path):
    torch.manual_seed(0)
    blueprint = blueprint_of(norm)
    network = build(blueprint)
    train(network, rows, rows, Loop(epochs=12), seed=0)
    assert evaluate(network, rows)[1] > 0.85
    smaller, pruned = prune(network, blueprint, 0.5)
    assert pruned.config.hidden == (16, 8)
    assert num_parameters(smaller) < num_parameters(network)
    train(smaller, rows, rows, Loop(epochs=8), seed=0)
    assert export(smaller, rows.x, tmp_path / "float.onnx") <= TOLERANCE
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", rows.x[:300].numpy())
    right = answer(session(tmp_path / "int8.onnx"), rows.x.numpy()).argmax(1) == rows.y.numpy()
    assert right.mean() > evaluate(smaller, rows)[1] - 0.05


@pytest.mark.parametrize("norm", NORMS)
def test_it_is_read_as_it_was_written(norm, rows, tmp_path: Path):
    network = build(blueprint_of(norm)).eval()
    write_network(network, blueprint_of(norm), tmp_path / "w", tmp_path / "b")
    again, blueprint = read_network(tmp_path / "w", tmp_path / "b")
    assert blueprint == blueprint_of(norm)
    with torch.no_grad():
        assert torch.equal(again(rows.x), network(rows.x))


def test_a_layer_of_one_unit_is_not_pruned_away():
    blueprint = blueprint_of(hidden=(1, 4))
    assert prune(build(blueprint), blueprint, 0.9)[1].config.hidden == (1, 1)
