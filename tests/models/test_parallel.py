"""One network on several processes of this machine: the same weights as in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data_contracts.errors import RecipeInvalid
from models.networks.config import Cnn, Mlp, Transformer
from models.training.parallel import refuse_impossible

ROOT = Path(__file__).resolve().parents[2]

# Trains one network alone and one together with the other processes, on the same batches.
TOGETHER = """
import copy, json, sys
import torch
import torch.distributed as dist
from data_contracts.layouts import Layout
from models.networks.blueprint import Blueprint, build
from models.networks.config import Transformer
from models.randomness import fix_randomness
from models.training import parallel
from models.training.batches import Examples
from models.training.config import Loop
from models.training.loop import train

dist.init_process_group("gloo")
config = Transformer(kind="transformer", width=32, num_heads=4, dropout=0.0)
blueprint = Blueprint(config=config, layout=Layout(kind="tokens", shape=(12,), num_tokens=50), num_outputs=3)
random = torch.Generator().manual_seed(0)
x = torch.randint(1, 50, (301, 12), generator=random).float()
x[::3, 7:] = 0
y = (x[:, 0] % 3).long()
rows, few = Examples(x, y, y.numpy()), Examples(x[:51], y[:51], y[:51].numpy())
loop = Loop(epochs=2, batch_size=32, learning_rate=1e-3, clip_norm=0.5, ema=0.9, class_weights="balanced")
told = {}
for strategy in ("ddp", "fsdp", "tensor"):
    fix_randomness(0, 1)
    alone = build(blueprint)
    together = copy.deepcopy(alone)
    before = {name: weight.clone() for name, weight in alone.state_dict().items()}
    by_one = train(alone, rows, few, loop, seed=0)
    by_many = train(
        together, rows, few, loop, seed=0, world=parallel.shared_rows(strategy),
        wrap=lambda network: parallel.spread(network, strategy, torch.device("cpu")),
    )
    held = sum(weight.to_local().numel() if hasattr(weight, "to_local") else weight.numel()
               for weight in together.parameters())
    weights = parallel.whole_weights(together)
    told[strategy] = {
        "held": held / sum(weight.numel() for weight in alone.parameters()),
        "losses": [[epoch.train_loss for epoch in history] for history in (by_one, by_many)],
    }
    if dist.get_rank() == 0:
        gaps = {name: (weights[name] - weight).abs().max().item() for name, weight in alone.state_dict().items()}
        told[strategy] |= {
            "apart": max(gaps.values()),
            "moved": max((weight - before[name]).abs().max().item() for name, weight in alone.state_dict().items()),
        }
if dist.get_rank() == 0:
    print("TOLD", json.dumps(told))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    script = tmp_path_factory.mktemp("together") / "together.py"
    script.write_text(TOGETHER, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    return json.loads(ended.stdout.partition("TOLD")[2])


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "tensor"])
def test_two_processes_end_with_the_weights_of_one_on_the_same_batches(told, strategy):
    # Sums in another order: float32 rounds at 1e-7, and a weight moves by a hundred thousand times that.
    assert told[strategy]["apart"] < 2e-6
    assert told[strategy]["moved"] > 1e-4
    alone, together = told[strategy]["losses"]
    assert together == pytest.approx(alone, abs=1e-6)


@pytest.mark.slow
def test_shards_leave_each_process_a_part_of_the_weights(told):
    assert told["ddp"]["held"] == 1
    assert told["fsdp"]["held"] == pytest.approx(0.5, abs=0.02)
    assert 0.5 < told["tensor"]["held"] < 0.7


@pytest.mark.parametrize(
    ("model", "num_processes"),
    [(Cnn(kind="cnn"), 2), (Mlp(kind="mlp"), 2), (Transformer(kind="transformer", num_heads=4), 3)],
    ids=lambda one: getattr(one, "kind", one),
)
def test_a_network_that_cannot_be_cut_across_is_refused(model, num_processes):
    with pytest.raises(RecipeInvalid, match="strategy: tensor"):
        refuse_impossible("tensor", model, num_processes)
    refuse_impossible("fsdp", model, num_processes)
