"""Networks for ordered classes: their outputs are consistent whatever their weights are, and survive every step."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.low_rank import factorize
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session, softmax
from bloomery.models.networks.blueprint import Blueprint, build_network, read_network, write_network
from bloomery.models.networks.config import Model
from bloomery.models.networks.layers.ordinal import class_log_probabilities

FLAT = Layout(kind="flat", shape=(6,))


def make_blueprint(kind: str = "mlp", layout: Layout = FLAT) -> Blueprint:
    config = TypeAdapter(Model).validate_python({"kind": kind})
    return Blueprint(config=config, layout=layout, task="ordinal", num_outputs=4)


def rows_of(layout: Layout, num_rows: int = 32) -> torch.Tensor:
    x = torch.randn(num_rows, *layout.shape, generator=torch.Generator().manual_seed(0))
    return x if layout.kind == "flat" else torch.rand(num_rows, *layout.shape)


def test_the_loss_is_that_of_the_conditional_probabilities_of_each_rank():
    logits = torch.randn(50, 3, dtype=torch.float64)
    y = torch.arange(50) % 4
    outputs = class_log_probabilities(logits)
    torch.testing.assert_close(outputs.exp().sum(dim=1), torch.ones(50), check_dtype=False)
    expected = sum(
        F.binary_cross_entropy_with_logits(logits[y >= rank, rank], (y[y >= rank] > rank).double(), reduction="sum")
        for rank in range(3)
    )
    torch.testing.assert_close(F.cross_entropy(outputs, y, reduction="sum").double(), expected, rtol=1e-5, atol=0)


def test_extreme_logits_give_finite_outputs_and_gradients():
    logits = torch.tensor([[300.0, -300.0, 300.0], [-300.0, 0.0, 300.0]], requires_grad=True)
    outputs = class_log_probabilities(logits)
    outputs.sum().backward()
    assert torch.isfinite(outputs).all()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", ["mlp", "tabm", "ft_transformer"])
def test_networks_have_one_logit_less_and_an_output_for_each_class(kind: str, tmp_path: Path):
    blueprint = make_blueprint(kind)
    network = build_network(blueprint).eval()
    x = rows_of(FLAT)
    with torch.no_grad():
        outputs = network(x)
        torch.testing.assert_close(outputs.exp().sum(dim=1), torch.ones(len(x)))
        assert torch.equal(copy.deepcopy(network)(x), outputs)
        write_network(network, blueprint, tmp_path / "w", tmp_path / "b")
        assert torch.equal(read_network(tmp_path / "w", tmp_path / "b")[0](x), outputs)
    assert network.state_dict()["head.bias"].shape[-1] == 3


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_quantized_files_keep_the_order_and_the_predictions(mode: str, tmp_path: Path):
    layout = Layout(kind="image", shape=(1, 8, 8))
    network = build_network(make_blueprint("cnn", layout)).eval()
    with torch.no_grad():
        network.head.weight *= 20
    x = rows_of(layout)
    export_onnx(network, x, tmp_path / "float.onnx")
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", x.numpy(), QuantizationOptions(mode=mode))
    exact, rounded = (
        softmax(run_session(create_session(tmp_path / name), x.numpy())) for name in ("float.onnx", "int8.onnx")
    )
    np.testing.assert_allclose(rounded.sum(axis=1), 1, atol=1e-6)
    beyond = 1 - np.cumsum(rounded, axis=1)
    assert (np.diff(beyond, axis=1) <= 1e-6).all()
    assert np.abs(exact - rounded).max() < 0.1


def test_pruned_and_factorized_networks_end_in_the_same_classes():
    layout = Layout(kind="image", shape=(1, 8, 8))
    blueprint = make_blueprint("cnn", layout)
    network = build_network(blueprint).eval()
    pruned = prune_network(network, blueprint, Pruning(ratio=0.5))
    x = rows_of(layout)
    with torch.no_grad():
        for smaller in (pruned.network, factorize(build_network(make_blueprint()).eval(), 0.5)):
            outputs = smaller.eval()(x if smaller is pruned.network else rows_of(FLAT))
            torch.testing.assert_close(outputs.exp().sum(dim=1), torch.ones(len(x)))
