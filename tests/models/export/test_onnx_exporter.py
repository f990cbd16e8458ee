"""Exports from PyTorch to ONNX with the same outputs."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from bloomery import models
from bloomery.data_contracts.errors import ParityBroken
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.export import onnx_exporter
from bloomery.models.export.onnx_exporter import TOLERANCE, add_metadata, export_onnx, export_program, measure_parity
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Cnn, Rnn, Transformer


@pytest.mark.parametrize("num_rows", [1, 2, 7, 64, 300])
def test_onnx_runtime_and_pytorch_have_the_same_outputs(exported, trained, splits, num_rows):
    x = splits.test.x[:num_rows]
    with torch.no_grad():
        expected = trained.network(x).numpy()
    np.testing.assert_allclose(run_session(create_session(exported), x.numpy()), expected, atol=TOLERANCE)


def test_export_is_deterministic(exported, trained, splits, tmp_path: Path):
    path = tmp_path / "another name.onnx"
    error = export_onnx(copy.deepcopy(trained.network), splits.train.x[:40], path)
    assert path.read_bytes() == exported.read_bytes()
    assert 0 <= error <= TOLERANCE


def test_two_exports_share_one_registry_of_operators(trained, splits, tmp_path: Path, monkeypatch):
    """PyTorch's own exports, which may bring operators, still build theirs."""
    registries = []
    clean_up = ONNXRegistry._cleanup_registry_based_on_opset_version
    monkeypatch.setattr(
        ONNXRegistry,
        "_cleanup_registry_based_on_opset_version",
        lambda registry: registries.append(registry) or clean_up(registry),
    )
    monkeypatch.setattr(onnx_exporter, "_OPERATOR_REGISTRIES", {})
    for name in ("first", "second"):
        export_onnx(trained.network, splits.train.x[:40], tmp_path / f"{name}.onnx")
    assert len(registries) == 1
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()
    assert ONNXRegistry.from_torchlib() is not registries[0]


def test_other_weights_give_other_bytes(exported, trained, splits, tmp_path: Path):
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        network.head.bias[0] += 1e-3
    export_onnx(network, splits.test.x, tmp_path / "other.onnx")
    assert (tmp_path / "other.onnx").read_bytes() != exported.read_bytes()


def test_the_file_is_valid_and_has_nothing_of_the_machine(exported):
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


def test_the_batch_size_is_dynamic_and_names_are_those_of_the_runtime(exported):
    graph = onnx.load(exported).graph
    ((network_input,), (network_output,)) = (graph.input, graph.output)
    assert (network_input.name, network_output.name) == ("x", "logits")
    assert [side.dim_value for side in network_input.type.tensor_type.shape.dim] == [0, 1, 8, 8]


def test_a_network_in_training_mode_is_exported_for_evaluation(trained, splits, exported, tmp_path: Path):
    network = copy.deepcopy(trained.network).train()
    export_onnx(network, splits.test.x, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (3, 28, 28)], ids=str)
def test_images_of_any_size_can_be_exported(shape, tmp_path: Path):
    network = build_network(
        Blueprint(
            config=Cnn(kind="cnn", channels=(3, 4), hidden=5), layout=Layout(kind="image", shape=shape), num_outputs=3
        )
    )
    assert export_onnx(network, torch.randn(40, *shape), tmp_path / "any.onnx") <= TOLERANCE


def test_one_example_is_enough(trained, splits, tmp_path: Path, exported):
    export_onnx(trained.network, splits.test.x[:1], tmp_path / "one.onnx")
    x = splits.test.x[:5].numpy()
    np.testing.assert_array_equal(
        run_session(create_session(tmp_path / "one.onnx"), x), run_session(create_session(exported), x)
    )


def test_a_network_with_nan_outputs_is_not_exported(trained, splits, tmp_path: Path):
    network = copy.deepcopy(trained.network)
    with torch.no_grad():
        network.head.bias[0] = float("nan")
    with pytest.raises(ParityBroken, match="differ by up to nan"):
        export_onnx(network, splits.test.x, tmp_path / "nan.onnx")


TOKENS = Layout(kind="tokens", shape=(12,), num_tokens=20)
PADDED = Layout(kind="sequence", shape=(12, 4), is_padded=True)
SOUND = Layout(kind="image", shape=(1, 5, 12))
SEQUENCES = {"tokens": TOKENS, "padded steps": PADDED, "sound": SOUND}
NODES = {"elman": "RNN", "lstm": "LSTM", "gru": "GRU"}


def rows_of(layout: Layout, num_rows: int, length: int = 12) -> torch.Tensor:
    """Rows with increasing padding, where the layout has padding; the last one is padding only."""
    if layout.kind == "image":
        return torch.randn(num_rows, *layout.shape)
    lengths = torch.linspace(length, 0, num_rows).round()[:, None]
    is_valid = (torch.arange(length) < lengths).float()
    if layout.kind == "tokens":
        return torch.randint(1, 20, (num_rows, length)) * is_valid
    x = torch.randn(num_rows, length, layout.shape[1])
    x[..., -1] = 1
    return x * is_valid.unsqueeze(-1)


def recurrent(cell: str, layout: Layout) -> nn.Module:
    config = Rnn(kind="rnn", cell=cell, hidden=8, num_layers=2, bidirectional=True, embedding=6, highway=3)
    return build_network(Blueprint(config=config, layout=layout, num_outputs=3)).eval()


def test_forecasts_far_from_the_training_rows_are_compared_by_their_size(tmp_path: Path):
    config = Rnn(kind="rnn", hidden=8, highway=12, relative=True)
    layout = Layout(kind="sequence", shape=(12, 1))
    network, other = (
        build_network(Blueprint(config=config, layout=layout, task="regression", num_outputs=1)).eval()
        for _ in range(2)
    )
    with torch.no_grad():
        network.highway.weight.normal_()
    x = 1_300 + torch.randn(40, 12, 1)
    assert export_onnx(network, x, tmp_path / "rnn.onnx") <= 100 * TOLERANCE
    with pytest.raises(ParityBroken, match="ONNX Runtime and PyTorch differ by up to"):
        measure_parity(other, x, tmp_path / "rnn.onnx")


@pytest.mark.parametrize("layout", SEQUENCES.values(), ids=SEQUENCES)
@pytest.mark.parametrize("cell", NODES)
def test_recurrent_layers_stay_one_operator_and_run_at_every_length(cell, layout, tmp_path: Path):
    network = recurrent(cell, layout)
    assert export_onnx(network, rows_of(layout, 40), tmp_path / "rnn.onnx") <= TOLERANCE
    graph = onnx.load(tmp_path / "rnn.onnx").graph
    assert [node.op_type for node in graph.node].count(NODES[cell]) == 4
    assert not any(node.op_type in ("If", "Loop", "Scan") for node in graph.node)
    runtime = create_session(tmp_path / "rnn.onnx")
    for num_rows, length in [(1, 12), (2, 1), (5, 7), (33, 12), (3, 40)]:
        x = rows_of(layout, num_rows, length)
        with torch.no_grad():
            np.testing.assert_allclose(run_session(runtime, x.numpy()), network(x).numpy(), atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("layout", SEQUENCES.values(), ids=SEQUENCES)
def test_attention_runs_at_every_length_up_to_the_longest(layout, tmp_path: Path):
    config = Transformer(kind="transformer", width=8, num_heads=2, max_length=20)
    network = build_network(Blueprint(config=config, layout=layout, num_outputs=3)).eval()
    assert export_onnx(network, rows_of(layout, 40), tmp_path / "t.onnx") <= TOLERANCE
    runtime = create_session(tmp_path / "t.onnx")
    for num_rows, length in [(1, 12), (2, 1), (5, 7), (33, 12), (3, 20)]:
        x = rows_of(layout, num_rows, length)
        with torch.no_grad():
            np.testing.assert_allclose(run_session(runtime, x.numpy()), network(x).numpy(), atol=TOLERANCE)


def test_rows_of_a_single_step_have_a_fixed_length(tmp_path: Path):
    layout = Layout(kind="sequence", shape=(1, 4))
    network = build_network(Blueprint(config=Rnn(kind="rnn", hidden=4), layout=layout, num_outputs=2))
    export_onnx(network, torch.randn(5, 1, 4), tmp_path / "one.onnx")
    (network_input,) = onnx.load(tmp_path / "one.onnx").graph.input
    assert [side.dim_value for side in network_input.type.tensor_type.shape.dim] == [0, 1, 4]


def test_exports_of_recurrent_networks_are_deterministic_too(tmp_path: Path):
    network = recurrent("lstm", TOKENS)
    for name, x in (("one", rows_of(TOKENS, 40)), ("other", rows_of(TOKENS, 5))):
        export_onnx(copy.deepcopy(network), x, tmp_path / name)
    content = (tmp_path / "one").read_bytes()
    assert content == (tmp_path / "other").read_bytes()
    assert b".py" not in content
    assert b"site-packages" not in content
    onnx.checker.check_model(onnx.load(tmp_path / "one"), full_check=True)


class FrozenLength(nn.Module):
    """Converts a shape to a Python number, which the exporter treats as a constant."""

    max_length = 12

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0].sum(1) / float(x.shape[1])


class FixedLengthReshape(FrozenLength):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[0].reshape(-1, int(x.shape[1]) * 3)[:, :3]


@pytest.mark.parametrize("module_class", [FrozenLength, FixedLengthReshape])
def test_a_network_that_works_at_one_length_only_is_not_exported(module_class, tmp_path: Path):
    with pytest.raises(ParityBroken):
        export_onnx(module_class(), torch.randn(40, 12, 4), tmp_path / "frozen.onnx")


def test_a_network_without_max_length_has_a_fixed_length(tmp_path: Path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    assert export_onnx(network, torch.randn(40, 12, 4), tmp_path / "flat.onnx") <= TOLERANCE


def test_the_runtime_returns_the_metadata(exported, splits, tmp_path: Path):
    for name, items in (("one", [("version", "3"), ("data", "ab12")]), ("other", [("data", "ab12"), ("version", "3")])):
        (tmp_path / name).write_bytes(exported.read_bytes())
        add_metadata(tmp_path / name, {"replaced": "yes"})
        add_metadata(tmp_path / name, dict(items))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    assert (tmp_path / "one").stat().st_size < exported.stat().st_size + 100
    runtime = create_session(tmp_path / "one")
    assert runtime.get_modelmeta().custom_metadata_map == {"data": "ab12", "version": "3"}
    x = splits.test.x[:5].numpy()
    np.testing.assert_array_equal(run_session(runtime, x), run_session(create_session(exported), x))


def test_constants_of_a_traced_network_are_folded(tmp_path: Path):
    export_onnx(recurrent("gru", SOUND), rows_of(SOUND, 8), tmp_path / "gru.onnx")
    assert "Constant" not in {node.op_type for node in onnx.load(tmp_path / "gru.onnx").graph.node}


RUN_PROGRAMS = """
import sys, torch
from pathlib import Path
for folder in map(Path, sys.argv[1:]):
    network = torch.export.load(folder / "network.pt2").module()
    torch.save(network(torch.load(folder / "x.pt")), folder / "y.pt")
assert not [name for name in sys.modules if name.split(".")[0] == "bloomery"]
"""


class SavedProgram(NamedTuple):
    """A network, its rows, and a folder with its program and the outputs of a process without our code."""

    network: nn.Module
    x: torch.Tensor
    folder: Path


@pytest.fixture(scope="module")
def saved_programs(trained, splits, tmp_path_factory: pytest.TempPathFactory) -> dict[str, SavedProgram]:
    """Two programs, run in one process because the import of PyTorch takes seconds."""
    networks = {"cnn": (trained.network, splits.test.x), "lstm": (recurrent("lstm", TOKENS), rows_of(TOKENS, 40))}
    programs = {kind: SavedProgram(*pair, tmp_path_factory.mktemp(kind)) for kind, pair in networks.items()}
    for network, x, folder in programs.values():
        assert export_program(network, x, folder / "network.pt2") <= TOLERANCE
        torch.save(x[:7], folder / "x.pt")
    folders = [program.folder for program in programs.values()]
    subprocess.run([sys.executable, "-c", RUN_PROGRAMS, *folders], check=True, cwd=folders[0])
    return programs


@pytest.mark.parametrize("kind", ["cnn", "lstm"])
def test_a_torch_export_program_runs_without_our_code(kind, saved_programs: dict[str, SavedProgram], tmp_path: Path):
    network, x, folder = saved_programs[kind]
    export_program(copy.deepcopy(network), x[:5], tmp_path / "other.pt2")
    content = (folder / "network.pt2").read_bytes()
    assert content == (tmp_path / "other.pt2").read_bytes()
    assert b"site-packages" not in content
    assert b"models/" + b"networks" not in content
    with torch.no_grad():
        torch.testing.assert_close(torch.load(folder / "y.pt"), network(x[:7]), atol=TOLERANCE, rtol=0)
