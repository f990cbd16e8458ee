"""The contract of every kind of network: training, export, padding, quantization and explanations.

A line in CASES tests a new kind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.compression.quantization.post_training import QuantizationOptions, quantize
from bloomery.models.explainability.attribution import explain
from bloomery.models.explainability.baselines import make_baseline
from bloomery.models.export.onnx_exporter import TOLERANCE, export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network, read_network, write_network
from bloomery.models.networks.config import Model

IMAGE = Layout(kind="image", shape=(1, 16, 16))
COLOUR = Layout(kind="image", shape=(3, 8, 8))
SOUND = Layout(kind="image", shape=(1, 5, 12))
NUMBERS = Layout(kind="flat", shape=(6,))
TABLE = Layout(kind="flat", shape=(6,), categories=((1, 5), (4, 30)))
STEPS = Layout(kind="sequence", shape=(7, 3))
PADDED = Layout(kind="sequence", shape=(7, 4), is_padded=True)
TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)
MIXED = mixed_layout(
    [
        Part(name="text", layout=TOKENS, is_optional=True),
        Part(name="table", layout=TABLE),
        Part(name="picture", layout=COLOUR, is_optional=True),
    ]
)
STEPS_AND_TEXT = mixed_layout([Part(name="logits", layout=PADDED), Part(name="relu", layout=TOKENS)])


class Case(NamedTuple):
    layout: Layout
    config: dict[str, Any]


_SMALL = {"width": 16, "num_heads": 2, "dropout": 0}
_BERT = {
    "model_type": "bert",
    "vocab_size": 19,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
    "hidden_dropout_prob": 0,
    "attention_probs_dropout_prob": 0,
}
CASES = {
    "cnn": Case(IMAGE, {"kind": "cnn", "channels": [8, 8], "hidden": 16, "dropout": 0}),
    "cnn of several convolutions": Case(
        COLOUR, {"kind": "cnn", "channels": [8, 8], "convolutions": 2, "hidden": 0, "dropout": 0}
    ),
    "strided cnn": Case(
        COLOUR,
        {"kind": "cnn", "channels": [8, 12], "convolutions": [1, 2], "strided": 1, "hidden": 16, "dropout": 0},
    ),
    "lenet": Case(IMAGE, {"kind": "lenet", "channels": [6, 8], "hidden": 16}),
    "resnet": Case(COLOUR, {"kind": "resnet", "width": 4}),
    "mlp": Case(NUMBERS, {"kind": "mlp", "hidden": [16], "dropout": 0}),
    "mlp of categories": Case(TABLE, {"kind": "mlp", "hidden": [16], "dropout": 0}),
    "mlp of periodic numbers": Case(
        TABLE, {"kind": "mlp", "hidden": [16], "dropout": 0, "periodic": {"frequencies": 6, "width": 4}}
    ),
    "tabm of numbers": Case(
        NUMBERS,
        {
            "kind": "tabm",
            "members": 4,
            "width": 16,
            "embedding": 4,
            "dropout": 0,
            "edges": [[-1, 0, 1], [-1.5, -0.5, 0.25, 2], [], [-2, 0.5, 1.5], [0, 0.5, 1], []],
        },
    ),
    "tabm of categories": Case(TABLE, {"kind": "tabm", "members": 4, "width": 16, "dropout": 0}),
    "ft_transformer": Case(TABLE, {"kind": "ft_transformer", **_SMALL, "num_layers": 2}),
    "rnn of tokens": Case(TOKENS, {"kind": "rnn", "hidden": 16, "embedding": 8, "dropout": 0}),
    "rnn of padded steps": Case(
        PADDED, {"kind": "rnn", "cell": "gru", "hidden": 8, "num_layers": 2, "bidirectional": True, "dropout": 0}
    ),
    "relative rnn": Case(STEPS, {"kind": "rnn", "hidden": 8, "highway": 7, "relative": True, "dropout": 0}),
    "rnn of sound": Case(SOUND, {"kind": "rnn", "cell": "elman", "hidden": 16, "dropout": 0}),
    "transformer of tokens": Case(TOKENS, {"kind": "transformer", **_SMALL, "max_length": 16}),
    "wide transformer of tokens": Case(
        TOKENS, {"kind": "transformer", **_SMALL, "num_layers": 1, "max_length": 16, "convolution": 3, "wide": True}
    ),
    "transformer of padded steps": Case(PADDED, {"kind": "transformer", **_SMALL, "num_layers": 1, "max_length": 16}),
    "token_bag": Case(TOKENS, {"kind": "token_bag", "width": 8, "pairs": 16, "dropout": 0}),
    "gpt": Case(TOKENS, {"kind": "gpt", **_SMALL, "max_length": 16}),
    "pretrained of tokens": Case(TOKENS, {"kind": "pretrained", "checkpoint": "tiny", "dropout": 0, "config": _BERT}),
    "fused": Case(
        MIXED,
        {
            "kind": "fused",
            "width": 12,
            "dropout": 0,
            "branches": {
                "text": {"kind": "transformer", **_SMALL, "num_layers": 1},
                "table": {"kind": "mlp", "hidden": [12], "dropout": 0},
                "picture": {"kind": "cnn", "channels": [4], "hidden": 8, "dropout": 0},
            },
        },
    ),
    "fused by a sum": Case(
        STEPS_AND_TEXT,
        {
            "kind": "fused",
            "width": 12,
            "join": "sum",
            "dropout": 0,
            "branches": {
                "relu": {"kind": "token_bag", "width": 8, "pairs": 16, "dropout": 0},
                "logits": {"kind": "mlp", "hidden": [12], "dropout": 0},
            },
        },
    ),
    "fused by attention": Case(
        STEPS_AND_TEXT,
        {
            "kind": "fused",
            "width": 12,
            "join": "attention",
            "dropout": 0,
            "branches": {
                "relu": {"kind": "gpt", **_SMALL, "num_layers": 1},
                "logits": {"kind": "rnn", "cell": "gru", "hidden": 8, "dropout": 0},
            },
        },
    ),
}
# One case of each kind is quick enough for every change; these cases are slow.
_SLOW = {
    "cnn of several convolutions",
    "strided cnn",
    "mlp",
    "rnn of tokens",
    "transformer of tokens",
    "rnn of sound",
    "transformer of padded steps",
    "fused by attention",
}
PADDABLE = [name for name, (layout, _) in CASES.items() if layout.kind == "tokens" or layout.is_padded]


def blueprint_of(name: str, num_outputs: int = 2) -> Blueprint:
    layout, config = CASES[name]
    return Blueprint(config=TypeAdapter(Model).validate_python(config), layout=layout, num_outputs=num_outputs)


def rows_of(layout: Layout, num_rows: int, length: int | None = None) -> torch.Tensor:
    """Random rows as the encoder writes them; rows of tokens and padded steps have different lengths."""
    if layout.kind == "mixed":
        return mixed_rows_of(layout, num_rows)
    shape = layout.shape if length is None else (length, *layout.shape[1:])
    random = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, *shape, generator=random)
    for position, count in layout.categories:
        x[:, position] = torch.randint(count, (num_rows,), generator=random).float()
    if layout.kind == "tokens":
        x = torch.randint(1, layout.num_tokens, (num_rows, *shape), generator=random).float()
    if layout.kind == "tokens" or layout.is_padded:
        lengths = torch.randint(1, shape[0] + 1, (num_rows, 1), generator=random)
        is_valid = torch.arange(shape[0]) < lengths
        if layout.kind == "tokens":
            return x * is_valid
        x[..., -1] = 1
        return x * is_valid.unsqueeze(-1)
    return x


def mixed_rows_of(layout: Layout, num_rows: int) -> torch.Tensor:
    """Random mixed rows, of which every third lacks each optional part."""
    columns = []
    for part in layout.parts:
        values = rows_of(part.layout, num_rows).flatten(1)
        if part.is_optional:
            flag = (torch.arange(num_rows) % 3 != 2).float()[:, None]
            values = torch.cat([values * flag, flag], dim=1)
        columns.append(values)
    return torch.cat(columns, dim=1)


class FittedNetwork(NamedTuple):
    """A network that is fitted to 8 rows, its initial weights, and its ONNX file."""

    name: str
    blueprint: Blueprint
    before: dict[str, torch.Tensor]
    network: nn.Module
    x: torch.Tensor
    y: torch.Tensor
    path: Path

    @property
    def runtime(self) -> onnxruntime.InferenceSession:
        return create_session(self.path)


@pytest.fixture(scope="module")
def fitted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FittedNetwork:
    torch.manual_seed(0)
    blueprint = blueprint_of(request.param)
    network = build_network(blueprint)
    before = copy.deepcopy(network.state_dict())
    x, y = rows_of(blueprint.layout, 8), torch.tensor([0, 1] * 4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(x), y).backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("contract") / "float.onnx"
    export_onnx(network.eval(), x, path)
    return FittedNetwork(request.param, blueprint, before, network, x, y, path)


def with_marks(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if name in _SLOW else []) for name in names]


every_kind = pytest.mark.parametrize("fitted", with_marks(CASES), indirect=True)
every_kind_with_padding = pytest.mark.parametrize("fitted", with_marks(PADDABLE), indirect=True)


@pytest.mark.parametrize("num_outputs", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_it_gives_one_row_of_outputs_per_row(name, num_outputs):
    """One output for a regression, a logit per class otherwise."""
    blueprint = blueprint_of(name, num_outputs)
    network = build_network(blueprint)
    for num_rows in (1, 5):
        outputs_BK = network.train(num_rows > 1)(rows_of(blueprint.layout, num_rows))
        assert (outputs_BK.shape, outputs_BK.dtype) == ((num_rows, num_outputs), torch.float32)
        assert torch.isfinite(outputs_BK).all()


@every_kind
def test_it_overfits_eight_rows(fitted):
    with torch.no_grad():
        assert torch.equal(fitted.network(fitted.x).argmax(1), fitted.y)


@every_kind
def test_every_parameter_learns(fitted):
    after = dict(fitted.network.named_parameters())
    assert [name for name, weight in after.items() if torch.equal(weight, fitted.before[name])] == []


@every_kind
def test_the_output_of_a_row_does_not_depend_on_its_batch(fitted):
    with torch.no_grad():
        single_rows = torch.cat([fitted.network(row) for row in fitted.x.split(1)])
        torch.testing.assert_close(fitted.network(fitted.x), single_rows, atol=1e-5, rtol=1e-4)


@every_kind
@pytest.mark.parametrize("num_rows", [1, 5, 33])
def test_its_onnx_file_equals_it_for_any_number_of_rows(fitted, num_rows):
    x = rows_of(fitted.blueprint.layout, num_rows)
    with torch.no_grad():
        expected = fitted.network(x).numpy()
    np.testing.assert_allclose(run_session(fitted.runtime, x.numpy()), expected, atol=TOLERANCE)


@every_kind_with_padding
@pytest.mark.parametrize("length", [1, 4, 13])
def test_its_onnx_file_equals_it_for_rows_of_any_length(fitted, length):
    x = rows_of(fitted.blueprint.layout, 6, length)
    with torch.no_grad():
        expected = fitted.network(x).numpy()
    np.testing.assert_allclose(run_session(fitted.runtime, x.numpy()), expected, atol=TOLERANCE)


@every_kind_with_padding
def test_padding_does_not_affect_the_output(fitted):
    layout, x = fitted.blueprint.layout, fitted.x
    longer = F.pad(x, (0, 4) if layout.kind == "tokens" else (0, 0, 0, 4))
    if layout.is_padded:
        noise = torch.randn(longer.shape) * (longer[..., -1:] == 0)
        noise[..., -1] = 0
        longer = longer + noise
    with torch.no_grad():
        torch.testing.assert_close(fitted.network(longer), fitted.network(x), atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(
        run_session(fitted.runtime, longer.numpy()), run_session(fitted.runtime, x.numpy()), atol=TOLERANCE
    )


@every_kind
def test_it_keeps_most_predictions_in_8_bits(fitted, tmp_path: Path):
    mode = next(spec.quantize for spec in default_candidates(fitted.blueprint.config.kind) if spec.quantize)
    quantize(fitted.path, tmp_path / "int8.onnx", fitted.x.numpy(), QuantizationOptions(mode=mode))
    tensors = onnx.load(tmp_path / "int8.onnx").graph.initializer
    assert any(tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) for tensor in tensors)
    outputs_BK = run_session(create_session(tmp_path / "int8.onnx"), fitted.x.numpy())
    assert (outputs_BK.argmax(1) == fitted.y.numpy()).sum() >= 7


@every_kind
def test_reading_inverts_writing(fitted, tmp_path: Path):
    write_network(fitted.network, fitted.blueprint, tmp_path / "w", tmp_path / "b")
    restored, blueprint = read_network(tmp_path / "w", tmp_path / "b")
    assert blueprint == fitted.blueprint
    with torch.no_grad():
        assert torch.equal(restored(fitted.x), fitted.network(fitted.x))


@every_kind
def test_its_predictions_can_be_explained(fitted):
    x, layout = fitted.x[:2], fitted.blueprint.layout
    explanation = explain(fitted.network, x, layout, make_baseline(x, layout, fitted.x))
    assert explanation.weights.shape == tuple(x.shape)
    assert np.isfinite(explanation.weights).all()
    assert (np.abs(explanation.weights).reshape(2, -1).sum(1) > 0).all()
