"""The multilayer perceptron: training, pruning, export, quantization and embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.config import Pruning
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.quantization.post_training import quantize
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.architectures.mlp import embedding_width
from bloomery.models.networks.blueprint import Blueprint, build_network, num_parameters, read_network, write_network
from bloomery.models.networks.config import Mlp, Periodic
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import evaluate, train

NORMS = ("batch", "none")


def blueprint_of(norm: str = "batch", hidden: tuple[int, ...] = (32, 16)) -> Blueprint:
    config = Mlp.model_validate({"kind": "mlp", "hidden": hidden, "norm": norm})
    return Blueprint(config=config, layout=Layout(kind="flat", shape=(6,)), num_outputs=2)


@pytest.fixture(scope="module")
def rows() -> Examples:
    x = torch.randn(2000, 6, generator=torch.Generator().manual_seed(0))
    return Examples(x, (x[:, 0] * x[:, 1] > 0).long(), np.arange(2000))


@pytest.mark.parametrize("norm", NORMS)
def test_it_learns_a_nonlinear_function_and_keeps_it_when_pruned_and_quantized(norm, rows, tmp_path: Path):
    torch.manual_seed(0)
    blueprint = blueprint_of(norm)
    network = build_network(blueprint)
    train(network, TrainingData(rows, rows), Loop(epochs=12))
    assert evaluate(network, rows)[1] > 0.85
    smaller, pruned = prune_network(network, blueprint, Pruning(ratio=0.5))
    assert pruned.config.hidden == (16, 8)
    assert num_parameters(smaller) < num_parameters(network)
    train(smaller, TrainingData(rows, rows), Loop(epochs=8))
    assert export_onnx(smaller, rows.x, tmp_path / "float.onnx") <= TOLERANCE
    quantize(tmp_path / "float.onnx", tmp_path / "int8.onnx", rows.x[:300].numpy())
    right = run_session(create_session(tmp_path / "int8.onnx"), rows.x.numpy()).argmax(1) == rows.y.numpy()
    assert right.mean() > evaluate(smaller, rows)[1] - 0.05


@pytest.mark.parametrize("norm", NORMS)
def test_reading_inverts_writing(norm, rows, tmp_path: Path):
    network = build_network(blueprint_of(norm)).eval()
    write_network(network, blueprint_of(norm), tmp_path / "w", tmp_path / "b")
    restored, blueprint = read_network(tmp_path / "w", tmp_path / "b")
    assert blueprint == blueprint_of(norm)
    with torch.no_grad():
        assert torch.equal(restored(rows.x), network(rows.x))


def test_a_layer_with_one_unit_is_not_removed():
    blueprint = blueprint_of(hidden=(1, 4))
    assert prune_network(build_network(blueprint), blueprint, Pruning(ratio=0.9))[1].config.hidden == (1, 1)


TABLE = Layout(kind="flat", shape=(4,), categories=((1, 5), (3, 100)))


def table_rows(num_rows: int) -> torch.Tensor:
    """Numbers at 0 and 2, codes of 5 and of 100 categories at 1 and 3."""
    numbers = torch.randn(num_rows, 2)
    codes = torch.stack([torch.randint(5, (num_rows,)), torch.randint(100, (num_rows,))], 1)
    return torch.stack([numbers[:, 0], codes[:, 0], numbers[:, 1], codes[:, 1]], 1).float()


@pytest.mark.parametrize("num_outputs", [1, 3])
def test_categories_become_embeddings_and_numbers_are_inputs(num_outputs):
    network = build_network(
        Blueprint(config=Mlp(kind="mlp", embedding=7), layout=TABLE, num_outputs=num_outputs)
    ).eval()
    assert [tuple(embedding.weight.shape) for embedding in network.embeddings] == [(5, 7), (100, 7)]
    assert network.layers[0][0].in_features == 2 + 2 * 7
    x_BF = table_rows(6)
    features = torch.cat(
        [
            x_BF[:, [0, 2]],
            *(
                embedding.weight[x_BF[:, position].long()]
                for embedding, position in zip(network.embeddings, (1, 3), strict=True)
            ),
        ],
        1,
    )
    with torch.no_grad():
        outputs_BK = network(x_BF)
        torch.testing.assert_close(outputs_BK, network.head(network.layers(features)))
    assert outputs_BK.shape == (6, num_outputs)


def test_embeddings_grow_with_the_number_of_categories_up_to_a_limit():
    widths = [embedding_width(count) for count in (1, 2, 10, 100, 1000, 100_000)]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (2, 50)


@given(st.floats(-1e9, 1e9, width=32) | st.sampled_from([float("nan"), float("inf"), float("-inf")]))
def test_a_code_out_of_range_is_clamped(code):
    network = build_network(Blueprint(config=Mlp(kind="mlp", hidden=(4,)), layout=TABLE, num_outputs=2)).eval()
    x_BF = torch.tensor([[0.5, code, -0.5, 7.0]])
    with torch.no_grad():
        outputs_BK = network(x_BF)
        assert torch.isfinite(outputs_BK).all()
        if abs(code) < 1e9:
            x_BF[0, 1] = min(max(int(code), 0), 4)
            assert torch.equal(outputs_BK, network(x_BF))


def test_every_column_affects_the_output():
    torch.manual_seed(0)
    network = build_network(Blueprint(config=Mlp(kind="mlp"), layout=TABLE, num_outputs=2)).eval()
    x_BF = torch.tensor([[0.5, 2.0, -0.5, 7.0]])
    with torch.no_grad():
        for position in range(4):
            changed_BF = x_BF.clone()
            changed_BF[0, position] += 1
            assert not torch.allclose(network(changed_BF), network(x_BF))


def test_a_pruned_network_keeps_its_embeddings():
    blueprint = Blueprint(config=Mlp(kind="mlp", hidden=(8, 4)), layout=TABLE, num_outputs=2)
    network = build_network(blueprint)
    smaller, pruned = prune_network(network, blueprint, Pruning(ratio=0.5))
    assert pruned.config.hidden == (4, 2)
    for original, pruned_embedding in zip(network.embeddings, smaller.embeddings, strict=True):
        assert torch.equal(original.weight, pruned_embedding.weight)


@pytest.mark.parametrize("layout", [TABLE, Layout(kind="flat", shape=(4,))], ids=["table", "numbers"])
def test_periodic_embeddings_have_frequencies_per_column_and_survive_pruning(layout, tmp_path: Path):
    config = Mlp(kind="mlp", hidden=(8, 4), periodic=Periodic(frequencies=5, spread=2.0, width=3))
    blueprint = Blueprint(config=config, layout=layout, num_outputs=2)
    torch.manual_seed(0)
    network = build_network(blueprint).eval()
    numbers_BN = table_rows(6)[:, [0, 2]] if layout.categories else table_rows(6)
    angles = 2 * torch.pi * numbers_BN[:, :, None] * network.waves.frequencies_NQ
    with torch.no_grad():
        waves = network.waves(numbers_BN)
        columns = [
            torch.relu(network.waves.linear(torch.cat([column_angles.sin(), column_angles.cos()], 1)))
            for column_angles in angles.unbind(1)
        ]
        torch.testing.assert_close(waves, torch.cat(columns, 1))
    smaller, pruned = prune_network(network, blueprint, Pruning(ratio=0.5))
    assert (pruned.config.hidden, pruned.config.periodic) == ((4, 2), config.periodic)
    assert torch.equal(smaller.waves.frequencies_NQ, network.waves.frequencies_NQ)
    assert export_onnx(smaller, table_rows(40), tmp_path / "float.onnx") <= TOLERANCE


def test_special_values_are_learnt_only_with_periodic_embeddings():
    x = torch.randint(0, 40, (3000, 1), generator=torch.Generator().manual_seed(0)).float()
    rows = Examples((x - 19.5) / 11.5, (x[:, 0] % 2).long(), np.arange(3000))  # odd or even
    scores = {}
    for periodic in (None, Periodic(spread=4.0)):
        torch.manual_seed(0)
        config = Mlp(kind="mlp", hidden=(32,), dropout=0, periodic=periodic)
        network = build_network(Blueprint(config=config, layout=Layout(kind="flat", shape=(1,)), num_outputs=2))
        train(network, TrainingData(rows, rows), Loop(epochs=8, batch_size=128, learning_rate=0.01))
        scores[periodic is not None] = evaluate(network, rows)[1]
    assert scores[True] > 0.95
    assert scores[False] < 0.7
