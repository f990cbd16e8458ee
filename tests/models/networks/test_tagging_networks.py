"""Networks with an output for each token: padding has no effect, and files give the outputs of the network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.fused_attention import fuse_attention
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.outputs import compute_outputs
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network, read_network, write_network
from bloomery.models.networks.config import Model
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.loop import predict

LENGTH, NUM_TOKENS = 12, 80


def make_blueprint(kind: str, folder: Path) -> Blueprint:
    options = {
        "rnn": {"hidden": 16, "bidirectional": True, "embedding": 16},
        "transformer": {"width": 32, "num_layers": 2, "num_heads": 2, "convolution": 3},
        "pretrained": {"checkpoint": "tiny", "config": json.loads((folder / "config.json").read_text())},
    }
    config = TypeAdapter(Model).validate_python({"kind": kind, **options[kind]})
    layout = Layout(kind="tokens", shape=(LENGTH,), num_tokens=NUM_TOKENS)
    return Blueprint(config=config, layout=layout, task="tagging", num_outputs=5)


def make_rows(num_rows: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    x = torch.randint(1, NUM_TOKENS, (num_rows, LENGTH), generator=random).float()
    lengths = torch.randint(0, LENGTH - 2, (num_rows,), generator=random)
    return x * (torch.arange(LENGTH) < lengths[:, None])


@pytest.mark.parametrize("kind", ["rnn", "transformer", "pretrained"])
def test_outputs_are_those_of_each_token_and_0_for_padding(kind: str, tiny_bert: Path, tmp_path: Path):
    torch.manual_seed(0)
    blueprint, x = make_blueprint(kind, tiny_bert), make_rows(70)
    network = build_network(blueprint).eval()
    with torch.no_grad():
        outputs = network(x)
        assert outputs.shape == (70, LENGTH, 5)
        is_real = x > 0
        is_real[:, 0] = True  # of a row of only padding
        assert (outputs[~is_real] == 0).all()
        assert (outputs[is_real] != 0).any(1).all()
        torch.testing.assert_close(network(x[:, : LENGTH - 2]), outputs[:, : LENGTH - 2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(predict(network, x), outputs, rtol=1e-4, atol=1e-5)
    write_network(network, blueprint, tmp_path / "weights.safetensors", tmp_path / "network.json")
    stored, _ = read_network(tmp_path / "weights.safetensors", tmp_path / "network.json")
    torch.testing.assert_close(stored(x), outputs)

    path = tmp_path / "network.onnx"
    assert export_onnx(network, x, path) <= TOLERANCE
    fused = tmp_path / "fused.onnx"
    assert fuse_attention(path, fused) == (kind != "rnn")
    for file in (path, fused) if fused.is_file() else (path,):
        session = create_session(file)
        for is_row_by_row in (True, False):
            computed = compute_outputs(session, x.numpy(), is_row_by_row=is_row_by_row)
            np.testing.assert_allclose(computed, outputs.numpy(), rtol=1e-3, atol=1e-4)
        assert run_session(session, x.numpy()[:1, :5]).shape == (1, 5, 5)
    quantize(path, tmp_path / "int8.onnx", x.numpy(), QuantizationOptions(mode="dynamic"))
    small = compute_outputs(create_session(tmp_path / "int8.onnx"), x.numpy(), is_row_by_row=True)
    assert (small[~is_real.numpy()] == 0).all()
    agreement = (small.argmax(2) == outputs.numpy().argmax(2))[is_real.numpy()].mean()
    assert agreement > 0.85


@pytest.mark.parametrize("kind", ["transformer", "pretrained"])
def test_pruned_networks_have_outputs_for_each_token(kind: str, tiny_bert: Path):
    torch.manual_seed(0)
    blueprint, x = make_blueprint(kind, tiny_bert), make_rows(20)
    network = build_network(blueprint).eval()
    y = torch.where(x > 0, 1, -100).to(torch.int16)
    pruned, smaller = prune_network(
        network, blueprint, Pruning(ratio=0.5), Examples(x, y, np.arange(20)), lambda network, rounds: None
    )
    assert pruned(x).shape == (20, LENGTH, 5)
    assert sum(weight.numel() for weight in pruned.parameters()) < sum(w.numel() for w in network.parameters())
    assert build_network(smaller).eval()(x).shape == (20, LENGTH, 5)
