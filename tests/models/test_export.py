"""From PyTorch to ONNX, with the same answers."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import models
from data_contracts.errors import ParityBroken
from models.config import Cnn
from models.export import TOLERANCE, export
from models.networks import Blueprint, build
from models.runtime import answer, session


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 300])
def test_onnx_runtime_answers_as_pytorch_does(exported, trained, parts, num_rows):
    x = parts.test.x[:num_rows]
    with torch.no_grad():
        expected = trained.network(x).numpy()
    np.testing.assert_allclose(answer(session(exported), x.numpy()), expected, atol=TOLERANCE)


def test_the_same_network_becomes_the_same_bytes_anywhere(exported, trained, parts, tmp_path: Path):
    again = tmp_path / "another name.onnx"
    error = export(copy.deepcopy(trained.network), parts.train.x[:40], again)
    assert again.read_bytes() == exported.read_bytes()
    assert 0 <= error <= TOLERANCE


def test_other_weights_become_other_bytes(exported, trained, parts, tmp_path: Path):
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        network.head.bias[0] += 1e-3
    export(network, parts.test.x, tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() != exported.read_bytes()


def test_the_file_is_valid_and_says_nothing_of_the_machine_it_was_made_on(exported):
    model = onnx.load(exported)
    onnx.checker.check_model(model, full_check=True)
    graph = model.graph
    assert not any(part.metadata_props for part in (model, graph, *graph.node, *graph.input, *graph.initializer))
    assert not graph.value_info
    assert not any(part.doc_string for part in (model, graph, *graph.node, *graph.input, *graph.initializer))
    content = exported.read_bytes()
    assert str(Path(models.__file__).parents[1]).encode() not in content
    assert b"site-packages" not in content
    assert b".py" not in content


def test_the_batch_size_is_free_and_the_names_are_the_runtimes(exported):
    graph = onnx.load(exported).graph
    ((given,), (answered,)) = (graph.input, graph.output)
    assert (given.name, answered.name) == ("x", "logits")
    assert [side.dim_value for side in given.type.tensor_type.shape.dim] == [0, 1, 8, 8]


def test_the_file_answers_as_in_evaluation_though_the_network_was_in_training(trained, parts, exported, tmp_path: Path):
    network = copy.deepcopy(trained.network).train()
    export(network, parts.test.x, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (3, 28, 28)], ids=str)
def test_images_of_any_size_can_be_exported(shape, tmp_path: Path):
    network = build(Blueprint(config=Cnn(kind="cnn", channels=(3, 4), hidden=5), input_shape=shape, num_classes=3))
    assert export(network, torch.randn(40, *shape), tmp_path / "any.onnx") <= TOLERANCE


def test_one_example_is_enough(trained, parts, tmp_path: Path, exported):
    export(trained.network, parts.test.x[:1], tmp_path / "one.onnx")
    x = parts.test.x[:5].numpy()
    np.testing.assert_array_equal(answer(session(tmp_path / "one.onnx"), x), answer(session(exported), x))


def test_a_network_whose_answers_are_no_numbers_is_not_exported(trained, parts, tmp_path: Path):
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    with pytest.raises(ParityBroken, match="differ by up to nan"):
        export(network, parts.test.x, tmp_path / "nan.onnx")
