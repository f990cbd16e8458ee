"""Checkpoints: a killed training resumes and ends with the same bits."""

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
from bloomery.models.networks.pretrained_config import Pretrained
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


def random_examples(num_rows: int, seed: int) -> Examples:
    random = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 10, (num_rows,), generator=random)
    return Examples(torch.rand(num_rows, 1, 8, 8, generator=random), y, y.numpy())


def run(
    folder: Path, loop: Loop, checkpoints: Checkpoints, killed_at: int | None = None, steps: list[int] | None = None
) -> tuple[str, list[EpochResult]]:
    """The digest of the weights and the history. Appends the number of each step to `steps`."""
    set_deterministic(seed=0, num_threads=1)
    network = build_network(BLUEPRINT)
    checkpointer = Checkpointer(folder / "checkpoints", checkpoints)

    def save(state: TrainingState) -> None:
        checkpointer.save(state)
        if steps is not None:
            steps.append(state.step)
        if state.step == killed_at:
            raise Killed

    data = TrainingData(random_examples(400, 1), random_examples(60, 2), seed=1)
    history = train(network, data, loop, hooks=TrainingHooks(load=checkpointer.load, save=save))
    return write_network(network, BLUEPRINT, folder / "weights", folder / "blueprint"), history


@pytest.mark.parametrize("loop", [PLAIN, RICH], ids=["plain", "rich"])
@pytest.mark.parametrize("killed_at", [5, 9, 13, 16])
def test_a_resumed_training_ends_with_the_same_bits(tmp_path: Path, loop: Loop, killed_at: int):
    expected = run(tmp_path, loop, NEVER)
    assert not (tmp_path / "checkpoints").exists()
    with pytest.raises(Killed):
        run(tmp_path, loop, Checkpoints(every_steps=4), killed_at)
    steps: list[int] = []
    assert run(tmp_path, loop, Checkpoints(every_steps=4), steps=steps) == expected
    assert steps[0] == killed_at // 4 * 4 + 1 or (steps[0] == killed_at and killed_at % 4 == 0)


STEPS = Layout(kind="sequence", shape=(7, 4), is_padded=True)
TOKENS = Layout(kind="tokens", shape=(9,), num_tokens=20)
BERT = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 16,
}
SEQUENCES = [
    (Rnn(kind="rnn", cell="gru", hidden=8, num_layers=2, bidirectional=True, dropout=0.2), STEPS),
    (Rnn(kind="rnn", cell="lstm", hidden=8, pooling="max", embedding=8, dropout=0.2), TOKENS),
    (Transformer(kind="transformer", width=16, num_heads=2, dropout=0.2), TOKENS),
    (Pretrained(kind="pretrained", checkpoint="tiny", config=BERT), TOKENS),
]


def write_rows(path: Path, layout: Layout, num_rows: int) -> Path:
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
@pytest.mark.parametrize(("config", "layout"), SEQUENCES, ids=["gru", "lstm", "transformer", "pretrained"])
def test_resumed_sequence_networks_end_with_the_same_bits_from_memory_and_disk(tmp_path, config, layout, is_streamed):
    loop = Loop(epochs=3, batch_size=16, clip_norm=1.0, ema=0.9)
    train_path, val_path = (write_rows(tmp_path / f"{num}.parquet", layout, num) for num in (310, 60))
    blueprint = Blueprint(config=config, layout=layout, num_outputs=3)

    def train_network(folder: Path, every_steps: int, killed_at: int | None = None) -> str:
        set_deterministic(seed=0, num_threads=1)
        network, checkpointer = (
            build_network(blueprint),
            Checkpointer(tmp_path / folder, Checkpoints(every_steps=every_steps)),
        )

        def save(state: TrainingState) -> None:
            checkpointer.save(state)
            if state.step == killed_at:
                raise Killed

        part: ExampleSource = read_examples(train_path, "id", layout)
        if is_streamed:
            stream = open_stream(train_path, layout)
            # Windows of about 70 rows, so that some batches span two windows.
            part = ExampleStream(train_path, layout, stream.groups, window_values=70 * layout.num_values)
        train(
            network,
            TrainingData(part, read_examples(val_path, "id", layout), seed=1),
            loop,
            hooks=TrainingHooks(load=checkpointer.load, save=save),
        )
        return write_network(network, blueprint, tmp_path / "weights", tmp_path / "blueprint")

    expected = train_network(Path("undisturbed"), 10_000)
    for killed_at in (7, 26, 33):  # in the first epoch and twice in the second
        with pytest.raises(Killed):
            train_network(Path("killed"), 6, killed_at)
    assert train_network(Path("killed"), 6) == expected


def test_only_the_newest_checkpoint_is_kept_and_it_can_be_deleted(tmp_path: Path):
    run(tmp_path, PLAIN, Checkpoints(every_steps=4))
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    Checkpointer(tmp_path / "checkpoints", NEVER).delete()
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_are_written_after_a_time(tmp_path: Path):
    run(tmp_path, PLAIN, Checkpoints(every_minutes=1e-9))
    (step_folder,) = (tmp_path / "checkpoints").iterdir()
    assert step_folder.name.endswith(f"{3 * 13}")


@pytest.mark.parametrize("file", ["weights.safetensors", "position.json", "state/.metadata"])
def test_a_damaged_checkpoint_is_ignored(tmp_path: Path, file: str):
    expected = run(tmp_path, PLAIN, NEVER)
    with pytest.raises(Killed):
        run(tmp_path, PLAIN, Checkpoints(every_steps=4), killed_at=6)
    (step_folder,) = (tmp_path / "checkpoints").iterdir()
    content = (step_folder / file).read_bytes()
    (step_folder / file).write_bytes(content[: len(content) // 2])
    steps: list[int] = []
    assert run(tmp_path, PLAIN, NEVER, steps=steps) == expected
    assert steps[0] == 1


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path):
    expected = run(tmp_path, PLAIN, NEVER)
    (tmp_path / "checkpoints" / ".step-000000000009").mkdir(parents=True)
    assert run(tmp_path, PLAIN, Checkpoints(every_steps=4)) == expected


def test_a_network_with_tied_weights_is_saved(tmp_path: Path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x.flatten(1)).relu())[:, :10]

    def train_tied(checkpoints: Checkpoints, killed_at: int | None = None) -> torch.Tensor:
        set_deterministic(seed=0, num_threads=1)
        network, checkpointer = Tied(), Checkpointer(tmp_path / "checkpoints", checkpoints)

        def save(state: TrainingState) -> None:
            checkpointer.save(state)
            if state.step == killed_at:
                raise Killed

        train(
            network,
            TrainingData(random_examples(100, 1), random_examples(20, 2)),
            PLAIN,
            hooks=TrainingHooks(load=checkpointer.load, save=save),
        )
        return network.first.weight.detach()

    expected = train_tied(NEVER)
    with pytest.raises(Killed):
        train_tied(Checkpoints(every_steps=2), killed_at=5)
    assert torch.equal(train_tied(Checkpoints(every_steps=2)), expected)


@pytest.mark.slow
def test_killing_a_process_during_an_epoch_changes_nothing(tmp_path: Path):
    expected = run(tmp_path, RICH, NEVER)
    child = subprocess.Popen([sys.executable, __file__, str(tmp_path)])
    deadline = time.monotonic() + 120
    while not list((tmp_path / "checkpoints").glob("step-*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    steps: list[int] = []
    assert run(tmp_path, RICH, Checkpoints(every_steps=1), steps=steps) == expected
    assert 1 < steps[0] < 3 * 7


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[3]))
    run(Path(sys.argv[1]), RICH, Checkpoints(every_steps=1))
