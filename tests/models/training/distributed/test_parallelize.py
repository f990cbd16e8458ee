"""Distributed training: several processes end with the weights of a single one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.networks.config import Cnn, Gpt, Mlp, Model, Transformer
from bloomery.models.training.config import Training
from bloomery.models.training.distributed.parallelize import require_supported_strategy
from bloomery.models.training.distributed.pipeline_parallel import num_microbatches

ROOT = Path(__file__).resolve().parents[4]

# Trains one network alone and one together with the other processes, on the same batches.
SCRIPT = """
import copy, json, sys
from pathlib import Path
import torch
import torch.distributed as dist
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Gpt, Transformer
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.distributed import parallelize
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.checkpointing import Checkpointer
from bloomery.models.training.config import Checkpoints, Loop
from bloomery.models.training.loop import Placement, TrainingHooks, train
from bloomery.models.training.process_group import exit_without_finalization

dist.init_process_group("gloo")
transformer = Transformer(kind="transformer", width=32, num_heads=4, dropout=0.0)
gpt = Gpt(kind="gpt", width=32, num_heads=4, num_layers=3, dropout=0.0)
layout = Layout(kind="tokens", shape=(12,), num_tokens=50)
random = torch.Generator().manual_seed(0)
x = torch.randint(1, 50, (301, 12), generator=random).float()
x[::3, 7:] = 0
y = (x[:, 0] % 3).long()
rows, val_rows = Examples(x, y, y.numpy()), Examples(x[:51], y[:51], y[:51].numpy())
loop = Loop(epochs=2, batch_size=32, learning_rate=1e-3, clip_norm=0.5, ema=0.9, class_weights="balanced")
report = {}
for name, strategy, config in (
    ("ddp", "ddp", transformer),
    ("fsdp", "fsdp", transformer),
    ("tensor", "tensor", transformer),
    ("pipeline", "pipeline", transformer),
    ("pipeline of a gpt", "pipeline", gpt),
):
    set_deterministic(0, 1)
    single = build_network(Blueprint(config=config, layout=layout, num_outputs=3))
    distributed = copy.deepcopy(single)
    before = {key: weight.clone() for key, weight in single.state_dict().items()}
    data = TrainingData(rows, val_rows)
    single_history = train(single, data, loop)
    history = train(
        distributed, data, loop, placement=Placement(
            group=parallelize.data_parallel_group(strategy),
            parallelize=lambda network, loop: parallelize.parallelize(network, loop, strategy, torch.device("cpu")),
        ),
    )
    num_own = sum(weight.to_local().numel() if hasattr(weight, "to_local") else weight.numel()
                   for weight in distributed.parameters())
    shares, histories = [0, 0], [None, None]
    dist.all_gather_object(shares, num_own / sum(weight.numel() for weight in single.parameters()))
    dist.all_gather_object(histories, history)
    weights = parallelize.gather_weights(distributed)
    report[name] = {
        "shares": shares,
        "losses": [[loss for epoch in history for loss in epoch[1:3]] for history in (single_history, *histories)],
    }
    if dist.get_rank() == 0:
        differences = {key: (weights[key] - weight).abs().max().item() for key, weight in single.state_dict().items()}
        report[name] |= {
            "difference": max(differences.values()),
            "change": max((weight - before[key]).abs().max().item() for key, weight in single.state_dict().items()),
        }

# A pipeline of two processes, both of which are interrupted after a step and resume.
def train_pipeline(folder, interrupted_at=None):
    class Interrupted(Exception):
        pass

    def save(state):
        checkpointer.save(state)
        if state.step == interrupted_at:
            raise Interrupted

    set_deterministic(0, 1)
    network = build_network(Blueprint(config=gpt.model_copy(update={"dropout": 0.2}), layout=layout, num_outputs=3))
    rate_shares = {key: 0.5 for key, _ in network.named_parameters() if "decoder" in key}
    checkpointer = Checkpointer(Path(sys.argv[1]) / folder, Checkpoints(every_steps=4))
    try:
        train(
            network, TrainingData(rows, val_rows), loop.model_copy(update={"schedule": "cosine"}),
            rate_shares=rate_shares,
            hooks=TrainingHooks(load=checkpointer.load, save=save),
            placement=Placement(
                group=parallelize.data_parallel_group("pipeline"),
                parallelize=lambda network, loop: parallelize.parallelize(
                    network, loop, "pipeline", torch.device("cpu"), 5
                ),
            ),
        )
    except Interrupted:
        return train_pipeline(folder)
    return parallelize.gather_weights(network)

undisturbed, disturbed = train_pipeline("undisturbed"), train_pipeline("disturbed", 13)
report["resumed"] = [torch.equal(disturbed[key], weight) for key, weight in undisturbed.items()]
if dist.get_rank() == 0:
    print("REPORT", json.dumps(report))
dist.destroy_process_group()
exit_without_finalization()
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("together")
    script = folder / "together.py"
    script.write_text(SCRIPT, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [*launcher, str(script), str(folder)], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return json.loads(process.stdout.partition("REPORT")[2])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor", "pipeline", "pipeline of a gpt"])
def test_two_processes_end_with_the_weights_of_one_process(report, strategy):
    # The order of the sums differs: float32 rounds at 1e-7, and weights change by a hundred thousand times that.
    assert report[strategy]["difference"] < 2e-6
    assert report[strategy]["change"] > 1e-4
    single_process, first_process, second_process = report[strategy]["losses"]
    assert first_process == pytest.approx(single_process, abs=1e-6)
    assert second_process == first_process


@pytest.mark.slow
def test_sharding_leaves_each_process_a_part_of_the_weights(report):
    assert report["ddp"]["shares"] == [1, 1]
    assert report["fsdp"]["shares"] == pytest.approx([0.5, 0.5], abs=0.02)
    assert all(0.5 < share < 0.7 for share in report["tensor"]["shares"])
    assert all(0.4 < share < 0.6 for share in report["pipeline"]["shares"])
    assert sum(report["pipeline"]["shares"]) == pytest.approx(1, abs=1e-12)


@pytest.mark.slow
def test_a_resumed_pipeline_ends_with_the_same_bits(report):
    # With dropout, and with learning rates for parameters that only one process has.
    assert report["resumed"]
    assert all(report["resumed"])


def refusal(model: Model, **training: Any) -> str:
    with pytest.raises(RecipeInvalid) as error:
        require_supported_strategy(Training(epochs=1, **training), model)
    return str(error.value)


@pytest.mark.parametrize("strategy", ["tensor", "pipeline"])
@pytest.mark.parametrize("model", [Cnn(kind="cnn"), Mlp(kind="mlp")], ids=lambda model: model.kind)
def test_a_network_without_blocks_supports_no_tensor_or_pipeline_parallelism(model, strategy):
    assert f"strategy: {strategy}` with a network of kind {model.kind}" in refusal(model, strategy=strategy, devices=2)
    require_supported_strategy(Training(epochs=1, strategy="fsdp", devices=2), model)


def test_heads_must_be_divisible_and_layers_sufficient():
    network = Transformer(kind="transformer", num_heads=4, num_layers=3)
    assert "4 heads for 3 processes" in refusal(network, strategy="tensor", devices=3)
    require_supported_strategy(Training(epochs=1, strategy="pipeline", devices=3), network)
    assert "3 layers for 4 processes" in refusal(network, strategy="pipeline", devices=2, nodes=2)
    require_supported_strategy(Training(epochs=1, strategy="tensor", devices=4), network)


def test_microbatches_are_at_least_processes_and_at_most_rows():
    network = Gpt(kind="gpt", num_layers=4)
    options = {"strategy": "pipeline", "devices": 4, "batch_size": 8}
    assert "3 microbatches for 4 processes" in refusal(network, microbatches=3, **options)
    assert "9 microbatches" in refusal(network, microbatches=9, **options)
    require_supported_strategy(Training(epochs=1, **options), network)
    assert [num_microbatches(None, batch_size, 4) for batch_size in (8, 64)] == [8, 16]
