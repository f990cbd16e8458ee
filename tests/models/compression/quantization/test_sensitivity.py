"""Sensitivity of layers to 8 bits, and quantization-aware training."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.distillation import set_target_loss
from bloomery.models.compression.quantization.integer_coverage import measure_integer_coverage
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.compression.quantization.quantization_aware import (
    add_fake_quantization,
    find_first_called_layer,
    learned_ranges,
    remove_fake_quantization,
)
from bloomery.models.compression.quantization.sensitivity import (
    ValidationRows,
    find_float_layers,
    measure_sensitivities,
    output_divergence,
)
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import FtTransformer, Transformer
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import TrainingData
from bloomery.models.training.loop import train


def with_large_channel(network: nn.Module, times: float) -> nn.Module:
    """A network with the same outputs but one large channel, so that 8 bits are precise for that channel only."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        norm, next_layer = network.blocks[0][1], network.blocks[1][0]
        norm.weight[0] *= times
        norm.bias[0] *= times
        next_layer.weight[:, 0] /= times
    return network


@pytest.fixture(scope="module")
def uneven_network(trained) -> nn.Module:
    return with_large_channel(trained.network, 100)


@pytest.fixture(scope="module")
def source(uneven_network, splits, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("uneven") / "float.onnx"
    export_onnx(uneven_network, splits.test.x[:40], path)
    return path


@pytest.fixture(scope="module")
def rows(splits) -> np.ndarray:
    return splits.train.x[:200].numpy()


def accuracy(path: Path, splits) -> float:
    return float((run_session(create_session(path), splits.test.x.numpy()).argmax(1) == splits.test.y.numpy()).mean())


def test_layers_around_uneven_channels_are_the_most_sensitive(source, rows):
    divergences = measure_sensitivities(source, rows)
    convolutions = {node.name for node in onnx.load(source).graph.node if node.op_type == "Conv"}
    assert set(list(divergences)[:2]) == convolutions
    worst, _, third, *_ = divergences.values()
    assert worst > 100 * third
    assert list(divergences.values()) == sorted(divergences.values(), reverse=True)


def test_no_more_layers_stay_in_float_than_the_limit_needs(source, rows, splits, tmp_path: Path):
    x, y = splits.val.x.numpy(), splits.val.y.numpy()
    exact = run_session(create_session(source), x).argmax(1)

    def changed_share(outputs_BK: np.ndarray) -> float:
        return float((outputs_BK.argmax(1) != exact).mean())

    assert len(y) == 200
    validation = ValidationRows(x, changed_share)
    float_layers = find_float_layers(source, rows, validation, 0.005)
    quantize(source, tmp_path / "part.onnx", rows, QuantizationOptions(keep_float=float_layers))
    quantize(source, tmp_path / "all.onnx", rows)
    assert changed_share(run_session(create_session(tmp_path / "part.onnx"), x)) <= 0.005
    assert changed_share(run_session(create_session(tmp_path / "all.onnx"), x)) > 0.005
    assert measure_integer_coverage(tmp_path / "all.onnx").share == 1
    coverage = measure_integer_coverage(tmp_path / "part.onnx")
    assert 0 < coverage.share < 1
    assert sum(coverage.float_operators.values()) == len(float_layers) == 2
    assert find_float_layers(source, rows, validation, 1.0) == ()


def test_quantization_aware_training_recovers_the_accuracy(trained, rows, splits, reduce_range, tmp_path: Path):
    uneven_network, source = with_large_channel(trained.network, 300), tmp_path / "float.onnx"
    export_onnx(uneven_network, splits.test.x[:40], source)
    quantize(source, tmp_path / "static.onnx", rows, QuantizationOptions(reduce_range=reduce_range))
    fake_quantized = add_fake_quantization(uneven_network, reduce_range=reduce_range)
    torch.manual_seed(0)  # for dropout
    train(fake_quantized, TrainingData(splits.train, splits.val), Loop(epochs=2, learning_rate=1e-3))
    learnt = remove_fake_quantization(fake_quantized)
    exported, quantized = tmp_path / "learnt.onnx", tmp_path / "aware.onnx"
    export_onnx(learnt, splits.test.x[:40], exported)
    quantize(
        exported, quantized, rows, QuantizationOptions(ranges=learned_ranges(fake_quantized), reduce_range=reduce_range)
    )
    exact, static, aware = (accuracy(path, splits) for path in (source, tmp_path / "static.onnx", quantized))
    assert static < exact - 0.15
    assert aware > static + 0.1
    # The file has the outputs of the network with fake quantization.
    x = splits.test.x
    with torch.no_grad():
        rounded_BK = fake_quantized(x).numpy()
    outputs_BK = run_session(create_session(quantized), x.numpy())
    assert (rounded_BK.argmax(1) == outputs_BK.argmax(1)).mean() > 0.98
    assert measure_integer_coverage(quantized).share == 1


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (Transformer(kind="transformer", width=32, num_layers=1), Layout(kind="sequence", shape=(7, 3))),
        (FtTransformer(kind="ft_transformer", width=32, num_layers=1, num_heads=4), Layout(kind="flat", shape=(6,))),
    ],
    ids=lambda value: value.kind,
)
def test_learned_ranges_of_linear_layers_over_steps_reach_the_file(config, layout, reduce_range, tmp_path: Path):
    """The exporter transposes their weights, which then have no names."""
    torch.manual_seed(0)
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=3))
    fake_quantized = add_fake_quantization(network, reduce_range=reduce_range)
    x = torch.randn(32, *layout.shape)
    fake_quantized(x)  # in training mode: updates the ranges
    fake_quantized.eval()
    export_onnx(remove_fake_quantization(fake_quantized), x, tmp_path / "learnt.onnx", keep_names=True)
    wide_ranges = {layer: (20 * low, 20 * high) for layer, (low, high) in learned_ranges(fake_quantized).items()}
    for name, ranges in (("learnt", learned_ranges(fake_quantized)), ("wider", wide_ranges)):
        target = tmp_path / f"{name}-int8.onnx"
        quantize(
            tmp_path / "learnt.onnx", target, x.numpy(), QuantizationOptions(ranges=ranges, reduce_range=reduce_range)
        )
        assert measure_integer_coverage(target).share == 1
    with torch.no_grad():
        rounded_BK = fake_quantized(x).numpy()
    learnt, wider = (
        np.abs(run_session(create_session(tmp_path / f"{name}-int8.onnx"), x.numpy()) - rounded_BK).max()
        for name in ("learnt", "wider")
    )
    assert learnt < (0.06 if reduce_range else 0.05) * np.abs(rounded_BK).max()
    assert learnt < 0.5 * wider


def test_fake_quantization_copies_the_network_and_can_be_removed(uneven_network, splits):
    before = copy.deepcopy(uneven_network.state_dict())
    restored = remove_fake_quantization(add_fake_quantization(uneven_network))
    assert list(restored.state_dict()) == list(before)
    for state in (restored.state_dict(), uneven_network.state_dict()):
        assert all(torch.equal(state[name], weight) for name, weight in before.items())


def test_the_output_layer_of_torchs_attention_is_not_rounded():
    network = nn.TransformerDecoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    fake_quantized = add_fake_quantization(network)
    x = torch.randn(4, 5, 8)
    assert fake_quantized(x, x).shape == x.shape
    assert set(learned_ranges(fake_quantized)) == {"linear1", "linear2"}


class _ReversedLayers(nn.Module):
    """Calls its layers in another order than it defines them."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs, self.inputs = nn.Linear(4, 2), nn.Linear(3, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.outputs(torch.relu(self.inputs(x)))
        return outputs


def test_a_first_layer_in_float_is_not_rounded_in_training(uneven_network, splits):
    network, x = _ReversedLayers(), torch.randn(8, 3)
    assert find_first_called_layer(network, x) == ("inputs",)
    fake_quantized = add_fake_quantization(network, keep_float=find_first_called_layer(network, x))
    assert list(learned_ranges(fake_quantized)) == ["outputs"]
    fake_quantized(x)  # in training mode: updates the ranges
    half_B3 = x / 2 + 0.001 * torch.randn(8, 3)
    # Inputs are neither clipped nor rounded.
    assert torch.equal(fake_quantized.inputs(half_B3), network.inputs(half_B3))
    assert find_first_called_layer(uneven_network, splits.test.x[:1]) == ("blocks.0.0",)
    assert find_first_called_layer(nn.Flatten(), x) == ()


def test_an_unknown_layer_name_is_refused(source, rows, tmp_path: Path):
    with pytest.raises(RecipeInvalid, match="keep_float names nothing-such"):
        quantize(source, tmp_path / "x.onnx", rows, QuantizationOptions(keep_float=["nothing-such"]))
    with pytest.raises(RecipeInvalid, match="ranges names nothing-such"):
        quantize(source, tmp_path / "x.onnx", rows, QuantizationOptions(ranges={"nothing-such": (0, 1)}))


@given(
    st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=4), st.floats(-9, 9)
)
def test_the_divergence_is_0_for_equal_probabilities_and_never_negative(logits, shift):
    logits_BK = np.array(logits, np.float32)
    assert output_divergence(logits_BK, logits_BK + np.float32(shift)) == pytest.approx(0, abs=1e-4)
    assert output_divergence(logits_BK, logits_BK[:, ::-1]) >= -1e-6


def test_the_divergence_of_sets_is_the_mean_of_those_of_their_labels():
    exact_BK = np.array([[0.0, 5.0], [-3.0, 40.0]], np.float32)
    shifted_BK = exact_BK + np.float32(2)
    assert output_divergence(exact_BK, shifted_BK) == pytest.approx(0, abs=1e-6)  # as classes nothing has changed
    expected = set_target_loss(torch.from_numpy(shifted_BK), torch.from_numpy(exact_BK), 1.0).item() / len(exact_BK)
    assert output_divergence(exact_BK, shifted_BK, is_multilabel=True) == pytest.approx(expected, rel=1e-4)
    assert output_divergence(exact_BK, exact_BK, is_multilabel=True) == 0
    assert expected > 0.01


def test_the_divergence_of_a_regression_is_a_share_of_the_variance():
    exact_B1 = np.array([[-1.0], [1.0]])
    assert output_divergence(exact_B1, exact_B1 + 0.5) == pytest.approx(0.25)
