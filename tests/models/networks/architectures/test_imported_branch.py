"""A trained ONNX file as a frozen branch of a fused network."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt, RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Part, mixed_layout
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.explainability.attribution import default_method
from bloomery.models.export.onnx_exporter import OPSET, TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.architectures.fused import FusedNetwork
from bloomery.models.networks.blueprint import Blueprint, build_network, read_network, write_network
from bloomery.models.networks.config import Fused, Imported
from bloomery.models.onnx_import.importer import import_features
from bloomery.models.training.data.batches import Examples
from bloomery.tasks.train.imported_branches import load_imported_branches
from tests.models.onnx_import.onnx_files import FLAT, IMAGE, dense, end, rows_of, run_original

LAYOUT = mixed_layout([Part(name="table", layout=FLAT), Part(name="photo", layout=IMAGE, is_optional=True)])


def build(path: Path) -> tuple[FusedNetwork, Blueprint, Examples]:
    imported = Imported(kind="imported", path=str(path), sha256=digest_of_file(path))
    branches = {"table": imported, "photo": {"kind": "cnn", "channels": [4], "hidden": 8}}
    config = Fused.model_validate({"kind": "fused", "width": 8, "dropout": 0, "branches": branches})
    blueprint = Blueprint(config=config, layout=LAYOUT, num_outputs=2)
    torch.manual_seed(0)
    x = torch.randn(40, *LAYOUT.shape)
    x[:, -1] = (torch.arange(40) % 3 != 0).float()
    examples = Examples(x, torch.arange(40) % 2, np.arange(40))
    network = build_network(blueprint)
    load_imported_branches(network, blueprint, examples)
    return network, blueprint, examples


@pytest.mark.parametrize("activation", [end("Softmax", axis=1), end("Identity"), end("Relu")])
def test_outputs_before_a_softmax_are_features(tmp_path: Path, activation):
    path = dense(tmp_path / "keras.onnx", activation)
    x = rows_of(FLAT, 33)
    features = import_features(path, FLAT, x)
    assert features.num_features == 3
    assert {entry.version for entry in features.model.opset_import} == {OPSET}
    values = run_session(create_session(features.model.SerializeToString()), x)
    expected = run_original(dense(tmp_path / "plain.onnx", end("Identity")), x)
    if activation[0] == "Relu":
        expected = np.maximum(expected, 0)
    np.testing.assert_allclose(values, expected, atol=1e-5)


def test_a_fused_network_learns_on_a_frozen_file(tmp_path: Path):
    network, blueprint, examples = build(dense(tmp_path / "keras.onnx", end("Softmax", axis=1)))
    x = examples.x
    y = (x[:, 0] > 0).long()
    file = network.branches[0].model
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    network.eval()
    assert network.branches[0].model == file
    assert (network(x).argmax(1) == y).float().mean() > 0.9
    assert default_method(network, LAYOUT) == "shapley"
    with torch.no_grad():
        expected = network(x)
        assert torch.equal(copy.deepcopy(network)(x), expected)
        write_network(network, blueprint, tmp_path / "w", tmp_path / "b")
        assert str(tmp_path) not in (tmp_path / "b").read_text()
        restored, _ = read_network(tmp_path / "w", tmp_path / "b")
        assert torch.equal(restored(x), expected)
    export_onnx(network, x, tmp_path / "fused.onnx")
    session = create_session(tmp_path / "fused.onnx")
    assert [value.name for value in session.get_inputs()] == ["table", "photo", "photo.present"]
    np.testing.assert_allclose(run_session(session, x.numpy()), expected.numpy(), atol=TOLERANCE)
    quantize(tmp_path / "fused.onnx", tmp_path / "int8.onnx", x.numpy(), QuantizationOptions(mode="static"))
    assert onnx.load(tmp_path / "int8.onnx").graph.initializer
    int8 = run_session(create_session(tmp_path / "int8.onnx"), x.numpy())
    assert (int8.argmax(1) == expected.numpy().argmax(1)).mean() > 0.9


def test_a_changed_or_unsuitable_file_is_refused(tmp_path: Path):
    path = dense(tmp_path / "keras.onnx", end("Identity"))
    network, blueprint, examples = build(path)
    wide = dense(tmp_path / "wide.onnx", end("Identity"), inputs=5)
    with pytest.raises(RecipeInvalid):
        build(wide)
    path.write_bytes(wide.read_bytes())
    with pytest.raises(OutputCorrupt, match="has changed since the recipe was read"):
        load_imported_branches(network, blueprint, examples)
