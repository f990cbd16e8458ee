"""Training and compression on a GPU; skipped on machines without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.compression.compressor import FineTuning, compress_network
from bloomery.models.compression.config import (
    CandidateSpec,
    Compression,
    Distillation,
    Pruning,
    Sparsification,
    Student,
)
from bloomery.models.export.onnx_exporter import export_onnx
from bloomery.models.networks.blueprint import Blueprint, build_network, write_network
from bloomery.models.networks.config import Cnn, Gpt, Mlp, Model, ResNet, Rnn, Transformer
from bloomery.models.profiling.flops import peak_flops
from bloomery.models.training.checkpointing import Checkpointer
from bloomery.models.training.config import Augment, Checkpoints, Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import EpochResult, Placement, TrainingHooks, TrainingState, evaluate, train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

IMAGE = Layout(kind="image", shape=(1, 8, 8))
STEPS = Layout(kind="sequence", shape=(7, 4), is_padded=True)
TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)
FLAT = Layout(kind="flat", shape=(6,))
NETWORKS: dict[str, tuple[Model, Layout]] = {
    "cnn": (Cnn(kind="cnn", channels=(4, 8), hidden=16, dropout=0.0), IMAGE),
    "resnet": (ResNet(kind="resnet", depth=18, width=8, stem="small"), IMAGE),
    "gru": (Rnn(kind="rnn", cell="gru", hidden=8, num_layers=2, bidirectional=True, dropout=0.0), STEPS),
    "lstm": (Rnn(kind="rnn", cell="lstm", hidden=8, pooling="max", embedding=8, dropout=0.0), TOKENS),
    "transformer": (Transformer(kind="transformer", width=16, num_heads=2, dropout=0.0), TOKENS),
    "gpt": (Gpt(kind="gpt", width=16, num_heads=2, num_layers=2, dropout=0.0), TOKENS),
    "mlp": (Mlp(kind="mlp", hidden=(16,), dropout=0.0), FLAT),
}
LOOP = Loop(epochs=3, batch_size=32, ema=0.9, clip_norm=1.0)


class Killed(Exception):
    pass


def blueprint_of(name: str) -> Blueprint:
    config, layout = NETWORKS[name]
    return Blueprint(config=config, layout=layout, num_outputs=3)


def rows_of(layout: Layout, num_rows: int, seed: int) -> Examples:
    """Random rows whose values depend on their class."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, num_rows)
    if layout.kind == "tokens":
        x = random.integers(1, 20, (num_rows, *layout.shape)).astype(np.float32)
        x[:, 0] = y + 1
    else:
        x = random.normal(size=(num_rows, *layout.shape)).astype(np.float32) + y.reshape(-1, *[1] * len(layout.shape))
    if layout.is_padded:
        x[..., -1] = 1
    return Examples(torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y), y)


def train_network(
    name: str, device: str, loop: Loop = LOOP, hooks: TrainingHooks | None = None
) -> tuple[nn.Module, list[EpochResult]]:
    set_deterministic(seed=0, num_threads=1)
    blueprint = blueprint_of(name)
    network = build_network(blueprint)
    data = TrainingData(rows_of(blueprint.layout, 400, 1), rows_of(blueprint.layout, 100, 2), seed=1)
    return network, train(network, data, loop, placement=Placement(device), hooks=hooks or TrainingHooks())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_learns_the_same_on_gpu_and_cpu_and_ends_on_the_cpu(name: str) -> None:
    network, history = train_network(name, "cuda")
    _, expected = train_network(name, "cpu")
    assert {weight.device.type for weight in network.state_dict().values()} == {"cpu"}
    assert not network.training
    np.testing.assert_allclose(history[0].train_loss, expected[0].train_loss, rtol=0.02)
    assert history[-1].val_loss < history[0].val_loss
    assert abs(history[-1].val_score - expected[-1].val_score) < 0.08


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_reproducible_on_one_gpu(name: str, tmp_path: Path) -> None:
    digests = {
        write_network(train_network(name, "cuda")[0], blueprint_of(name), tmp_path / "weights", tmp_path / "blueprint")
        for _ in range(2)
    }
    assert len(digests) == 1


@pytest.mark.parametrize("name", ["cnn", "gru", "transformer"])
def test_a_resumed_training_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    def run(checkpoints: Checkpoints, killed_at: int | None = None) -> str:
        checkpointer = Checkpointer(tmp_path / "checkpoints", checkpoints)

        def save(state: TrainingState) -> None:
            checkpointer.save(state)
            if state.step == killed_at:
                raise Killed

        network, _ = train_network(name, "cuda", hooks=TrainingHooks(load=checkpointer.load, save=save))
        return write_network(network, blueprint_of(name), tmp_path / "weights", tmp_path / "blueprint")

    expected = run(Checkpoints(every_minutes=10_000))
    with pytest.raises(Killed):
        run(Checkpoints(every_steps=4), killed_at=18)
    assert run(Checkpoints(every_steps=4)) == expected


@pytest.mark.parametrize("name", ["cnn", "transformer", "mlp"])
def test_bf16_and_compiled_networks_learn_equally_well(name: str) -> None:
    loop = LOOP.model_copy(update={"precision": "bf16", "compile": True, "epochs": 4})
    network, history = train_network(name, "cuda", loop)
    assert history[-1].val_loss < history[0].val_loss
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}


CANDIDATES = {
    "pruned": CandidateSpec(name="pruned", prune=Pruning(ratio=0.5)),
    "taylor": CandidateSpec(name="taylor", prune=Pruning(ratio=0.5, importance="taylor")),
    "sparse, few values": CandidateSpec(name="coded", sparsify=Sparsification(density=0.3, rounds=2), num_clusters=8),
    "student": CandidateSpec(name="student", student=Student(model=Cnn(kind="cnn", channels=(2, 4), hidden=8))),
    "aware": CandidateSpec(name="aware", quantize="static", quantization_aware=True),
    "factorized": CandidateSpec(name="thin", factorize=0.5),
}


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("distillation", [Distillation(), Distillation(feature_weight=1.0, attention_weight=1.0), None])
def test_compressed_networks_are_fine_tuned_and_exported(
    candidate: str, distillation: Distillation | None, tmp_path: Path
) -> None:
    teacher, _ = train_network("cnn", "cuda")
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    train_rows, val_rows = rows_of(IMAGE, 400, 1), rows_of(IMAGE, 100, 2)
    compression = Compression(fine_tune=Loop(epochs=4, batch_size=32), distill=distillation)
    fine_tuning = FineTuning(train_rows, val_rows, teacher, compression, device="cuda")
    smaller = compress_network(teacher, blueprint_of("cnn"), CANDIDATES[candidate], fine_tuning)
    assert {tensor.device.type for network in (smaller, teacher) for tensor in network.state_dict().values()} == {"cpu"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert evaluate(smaller, val_rows)[1] > 0.6
    if CANDIDATES[candidate].quantization_aware:
        return  # the ranges are removed before the export
    assert export_onnx(smaller, val_rows.x, tmp_path / "model.onnx") < 1e-3


def test_training_with_augmented_images_works() -> None:
    loop = LOOP.model_copy(update={"augment": Augment(flip=True, shift=1, rotate=5, mixup=0.2, erase=0.2)})
    _, history = train_network("cnn", "cuda", loop)
    assert np.isfinite([epoch.train_loss for epoch in history]).all()


def test_peak_flops_are_measured() -> None:
    assert peak_flops(torch.device("cuda"), torch.bfloat16) > 1e12
