"""Every step of compression on a network of branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.networks.architectures.token_bag import learn_importances
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Fused, Rnn
from bloomery.models.networks.token_bag_config import TokenBag
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import train

LAYOUT = mixed_layout(
    [
        Part(name="table", layout=Layout(kind="flat", shape=(4,))),
        Part(name="photo", layout=Layout(kind="image", shape=(1, 4, 4)), is_optional=True),
        Part(name="note", layout=Layout(kind="tokens", shape=(6,), num_tokens=9), is_optional=True),
    ]
)
BRANCHES = {
    "table": {"kind": "mlp", "hidden": [32]},
    "photo": {"kind": "cnn", "channels": [8], "hidden": 16},
    "note": {"kind": "transformer", "width": 16, "num_layers": 1, "num_heads": 2},
}
SMALL = {
    "kind": "fused",
    "width": 8,
    "branches": {**BRANCHES, "table": {"kind": "mlp", "hidden": [8]}, "note": {"kind": "rnn", "hidden": 8}},
}
LOOP = Loop(epochs=6, batch_size=32, learning_rate=5e-3)


@pytest.fixture(scope="module")
def tuning() -> tuple[FineTuning, Blueprint]:
    torch.manual_seed(0)
    x = torch.randn(192, *LAYOUT.shape)
    x[:, 21:27] = torch.randint(1, 9, (192, 6)).float()
    x[:, [20, 27]] = (torch.rand(192, 2) > 0.2).float()
    y = (x[:, 0] + x[:, 1] > 0).long()
    rows = Examples(x, y, np.arange(192))
    config = Fused.model_validate({"kind": "fused", "width": 16, "branches": BRANCHES})
    blueprint = Blueprint(config=config, layout=LAYOUT, num_outputs=2)
    network = build_network(blueprint)
    train(network, TrainingData(rows, rows), LOOP)
    compression = Compression(fine_tune=Loop(epochs=2, batch_size=32, learning_rate=2e-3))
    return FineTuning(rows, rows, network.eval(), compression), blueprint


SPECS = {
    "prune": {"prune": 0.5},
    "factorize": {"factorize": 0.4},
    "sparsify": {"sparsify": {"density": 0.5, "rounds": 1}},
    "clusters": {"num_clusters": 32},
    "student": {"student": {"model": SMALL, "training": {"epochs": 20, "batch_size": 32, "learning_rate": 5e-3}}},
}

DAILY_STEPS = ("prune",)  # each branch has one test per step of its own kind


def accuracy(path: Path, rows: Examples) -> float:
    outputs = run_session(create_session(path), rows.x.numpy())
    return float((outputs.argmax(1) == rows.y.numpy()).mean())


@pytest.mark.parametrize(
    "step", [step if step in DAILY_STEPS else pytest.param(step, marks=pytest.mark.nightly) for step in SPECS]
)
def test_each_step_gives_a_file_that_predicts(tuning, step, tmp_path: Path):
    fine_tuning, blueprint = tuning
    spec = CandidateSpec.model_validate({"name": "smaller", **SPECS[step]})
    network = compress_network(fine_tuning.teacher, blueprint, spec, fine_tuning)
    export_onnx(network, fine_tuning.train.x, tmp_path / "smaller.onnx")
    assert accuracy(tmp_path / "smaller.onnx", fine_tuning.train) > 0.8


def test_a_student_knows_how_rare_the_tokens_of_its_training_rows_are():
    random = torch.Generator().manual_seed(0)
    x = torch.randint(1, 9, (32, 6), generator=random).float()
    rows = Examples(x, x[:, 0].long() % 2, np.arange(32))
    layout = Layout(kind="tokens", shape=(6,), num_tokens=9)
    student = TokenBag(kind="token_bag", width=4, pairs=8)
    expected = build_network(Blueprint(config=student, layout=layout, num_outputs=2))
    learn_importances(expected, x)
    teacher = Blueprint(config=Rnn(kind="rnn", hidden=4), layout=layout, num_outputs=2)
    network, loop = build_network(teacher), Loop(epochs=1, batch_size=16)
    spec = CandidateSpec.model_validate({"name": "small", "student": {"model": student.model_dump()}})
    small = compress_network(network, teacher, spec, FineTuning(rows, rows, network, Compression(fine_tune=loop)))
    assert torch.equal(small.importances_V, expected.importances_V)
