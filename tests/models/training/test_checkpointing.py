"""Training that is killed goes on where it was, and ends in the same bits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL
from bloomery.models.networks.blueprint import Blueprint, build_network, write_network
from bloomery.models.networks.config import Cnn, Rnn, Transformer
from bloomery.models.training.checkpointing import Checkpointer
from bloomery.models.training.config import Augment, Checkpoints, Loop
from bloomery.models.training.data.batches import Examples, ExampleSource, TrainingData, read_examples
from bloomery.models.training.data.streaming import ExampleStream, open_stream
from bloomery.models.training.determinism import set_deterministic
from bloomery.models.training.loop import EpochResult, TrainingHooks, TrainingState, train

BLUEPRINT = Blueprint(
    config=Cnn(kind="cnn", channels=(4, 8), hidden=16, dropout=0.1),
    layout=Layout(kind="image", shape=(1, 8, 8)),
    num_outputs=10,
)
PLAIN = Loop(epochs=3, batch_size=32)
RICH = Loop(
    epochs=3,
    batch_size=32,
    accumulate=2,
    schedule="cosine",
    clip_norm=1.0,
    ema=0.9,
    augment=Augment(flip=True, shift=1, rotate=5, mixup=0.2),
)
NEVER = Checkpoints(every_minutes=10_000)


class Killed(Exception):
    pass


def made_up(num_rows: int, seed: int) -> Examples:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 10, (num_rows,), generator=random)
    return Examples(torch.rand(num_rows, 1, 8, 8, generator=random), y, y.numpy())


def run(
    folder: Path, loop: Loop, checkpoints: Checkpoints, killed_at: int | None = None, seen: list[int] | None = None
) -> tuple[str, list[EpochResult]]:
    """The digest of the weights, and what was told of the epochs. Shows in `seen` each step that was taken."""
    set_deterministic(seed=0, num_threads=1)
    network = build_network(BLUEPRINT)
    checkpointer = Checkpointer(folder / "kept", checkpoints)

    def save(state: TrainingState) -> None:
        checkpointer.save(state)
        if seen is not None:
            seen.append(state.step)
        if state.step == killed_at:
            raise Killed

    parts = made_up(400, 1), made_up(60, 2)
    history = train(network, TrainingData(*parts, seed=1), loop, hooks=TrainingHooks(load=checkpointer.load, save=save))
    return write_network(network, BLUEPRINT, folder / "weights", folder / "blueprint"), history


@pytest.mark.parametrize("loop", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("killed_at", [5, 9, 13, 16])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, loop: Loop, killed_at: int):
    wanted = run(tmp_path, loop, NEVER)
    assert not (tmp_path / "kept").exists()
    with pytest.raises(Killed):
        run(tmp_path, loop, Checkpoints(every_steps=4), killed_at)
    seen: list[int] = []
    assert run(tmp_path, loop, Checkpoints(every_steps=4), seen=seen) == wanted
    assert seen[0] == killed_at // 4 * 4 + 1 or (seen[0] == killed_at and killed_at % 4 == 0)


STEPS = Layout(kind="sequence", shape=(7, 4), is_padded=True)
TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)
SEQUENCES = [
    (Rnn(kind="rnn", cell="gru", hidden=8, num_layers=2, bidirectional=True, dropout=0.2), STEPS),
    (Rnn(kind="rnn", cell="lstm", hidden=8, pooling="max", embedding=8, dropout=0.2), TOKENS),
    (Transformer(kind="transformer", width=16, num_heads=2, dropout=0.2), TOKENS),
]


def written(path: Path, layout: Layout, num_rows: int) -> Path:
    """Rows of unequal lengths, in small row groups."""
    random = np.random.default_rng(num_rows)
    x = random.integers(1, 20, (num_rows, *layout.shape)).astype(np.float32)
    x[np.arange(layout.shape[0]) >= random.integers(1, layout.shape[0] + 1, num_rows)[:, None]] = 0
    if layout.is_padded:
        x[..., -1] = x[..., -1] > 0
    columns = {"id": np.arange(num_rows), ENCODED_LABEL: random.integers(0, 3, num_rows)}
    values = pa.array(list(x.reshape(num_rows, -1)), pa.list_(pa.float32()))
    pq.write_table(pa.table({**columns, ENCODED_INPUT: values}), path, row_group_size=50)
    return path


@pytest.mark.parametrize("is_streamed", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(("config", "layout"), SEQUENCES, ids=["gru", "lstm", "transformer"])
def test_resumed_sequence_networks_end_with_the_same_bits_from_memory_and_disk(tmp_path, config, layout, is_streamed):
    loop = Loop(epochs=3, batch_size=16, clip_norm=1.0, ema=0.9)
    train_path, val_path = (written(tmp_path / f"{num}.parquet", layout, num) for num in (310, 60))
    blueprint = Blueprint(config=config, layout=layout, num_outputs=3)

    def weights(folder: Path, every: int, killed_at: int | None = None) -> str:
        set_deterministic(seed=0, num_threads=1)
        network, checkpointer = (
            build_network(blueprint),
            Checkpointer(tmp_path / folder, Checkpoints(every_steps=every)),
        )

        def save(state: TrainingState) -> None:
            checkpointer.save(state)
            if state.step == killed_at:
                raise Killed

        part: ExampleSource = read_examples(train_path, "id", layout)
        if is_streamed:
            opened = open_stream(train_path, layout)
            # Windows of some 70 rows, so that batches lie across them.
            part = ExampleStream(train_path, layout, opened.groups, window_values=70 * layout.num_values)
        train(
            network,
            TrainingData(part, read_examples(val_path, "id", layout), seed=1),
            loop,
            hooks=TrainingHooks(load=checkpointer.load, save=save),
        )
        return write_network(network, blueprint, tmp_path / "weights", tmp_path / "blueprint")

    wanted = weights(Path("undisturbed"), 10_000)
    for killed_at in (7, 26, 33):  # in the first epoch and twice in the second
        with pytest.raises(Killed):
            weights(Path("killed"), 6, killed_at)
    assert weights(Path("killed"), 6) == wanted


def test_only_the_newest_checkpoint_is_kept_and_it_can_be_deleted(tmp_path: Path):
    run(tmp_path, PLAIN, Checkpoints(every_steps=4))
    assert len(list((tmp_path / "kept").iterdir())) == 1
    Checkpointer(tmp_path / "kept", NEVER).delete()
    assert not (tmp_path / "kept").exists()


def test_checkpoints_are_written_after_a_time(tmp_path: Path):
    run(tmp_path, PLAIN, Checkpoints(every_minutes=1e-9))
    (place,) = (tmp_path / "kept").iterdir()
    assert place.name.endswith(f"{3 * 13}")


@pytest.mark.parametrize("damage", ["weights.safetensors", "position.json", "state/.metadata"])
def test_a_damaged_checkpoint_is_ignored(tmp_path: Path, damage: str):
    wanted = run(tmp_path, PLAIN, NEVER)
    with pytest.raises(Killed):
        run(tmp_path, PLAIN, Checkpoints(every_steps=4), killed_at=6)
    (place,) = (tmp_path / "kept").iterdir()
    content = (place / damage).read_bytes()
    (place / damage).write_bytes(content[: len(content) // 2])
    seen: list[int] = []
    assert run(tmp_path, PLAIN, NEVER, seen=seen) == wanted
    assert seen[0] == 1


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path):
    wanted = run(tmp_path, PLAIN, NEVER)
    (tmp_path / "kept" / ".step-000000000009").mkdir(parents=True)
    assert run(tmp_path, PLAIN, Checkpoints(every_steps=4)) == wanted


def test_a_network_with_tied_weights_is_saved(tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x.flatten(1)).relu())[:, :10]

    def once(checkpoints: Checkpoints, killed_at: int | None = None) -> torch.Tensor:
        set_deterministic(seed=0, num_threads=1)
        network, checkpointer = Tied(), Checkpointer(tmp_path / "kept", checkpoints)

        def save(state: TrainingState) -> None:
            checkpointer.save(state)
            if state.step == killed_at:
                raise Killed

        train(
            network,
            TrainingData(made_up(100, 1), made_up(20, 2)),
            PLAIN,
            hooks=TrainingHooks(load=checkpointer.load, save=save),
        )
        return network.first.weight.detach()

    wanted = once(NEVER)
    with pytest.raises(Killed):
        once(Checkpoints(every_steps=2), killed_at=5)
    assert torch.equal(once(Checkpoints(every_steps=2)), wanted)


@pytest.mark.slow
def test_killing_a_process_during_an_epoch_changes_nothing(tmp_path: Path):
    wanted = run(tmp_path, RICH, NEVER)
    child = subprocess.Popen([sys.executable, __file__, str(tmp_path)])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "kept").glob("step-*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    seen: list[int] = []
    assert run(tmp_path, RICH, Checkpoints(every_steps=1), seen=seen) == wanted
    assert 1 < seen[0] < 3 * 7


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    run(Path(sys.argv[1]), RICH, Checkpoints(every_steps=1))
