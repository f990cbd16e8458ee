"""Batches of rows of similar length: every row once, in an order that depends on seed and epoch only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL
from bloomery.models.training import loop
from bloomery.models.training.data.batches import Examples, RowSource, iterate_batches
from bloomery.models.training.data.length_buckets import LengthBuckets, predict_by_length, row_lengths
from bloomery.models.training.data.streaming import ExampleStream, open_stream, window_seed
from bloomery.models.training.process_group import ProcessGroup

LENGTH, BATCH_SIZE = 40, 16
LAYOUT = Layout(kind="tokens", shape=(LENGTH,), num_tokens=9)


def make_rows(num_rows: int) -> np.ndarray:
    """Tokens of rows with random lengths."""
    random = np.random.default_rng(0)
    lengths = random.integers(1, LENGTH + 1, num_rows)
    return (np.arange(LENGTH) < lengths[:, None]).astype(np.float32)


def in_memory(num_rows: int) -> RowSource:
    return Examples(torch.from_numpy(make_rows(num_rows)), torch.arange(num_rows), np.arange(num_rows))


def on_disk(num_rows: int, folder: Path) -> RowSource:
    """Rows on disk with windows of about 130 rows, so that some batches span two windows."""
    values = pa.array(list(make_rows(num_rows)), pa.list_(pa.float32()))
    table = pa.table({"id": range(num_rows), ENCODED_LABEL: range(num_rows), ENCODED_INPUT: values})
    pq.write_table(table, folder / "rows.parquet", row_group_size=90)
    stream = open_stream(folder / "rows.parquet", LAYOUT)
    return ExampleStream(stream.path, LAYOUT, stream.groups, window_values=130 * LENGTH)


@pytest.fixture(params=["memory", "disk"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> RowSource:
    return in_memory(700) if request.param == "memory" else on_disk(700, tmp_path)


def batches_of(rows: RowSource, epoch: int = 1, start: int = 0) -> list[list[int]]:
    buckets = LengthBuckets(rows, BATCH_SIZE)
    return [y.tolist() for _, y in iterate_batches(buckets, BATCH_SIZE, seed=3, epoch=epoch, start=start)]


def count_padding(rows: RowSource) -> int:
    batches = iterate_batches(rows, BATCH_SIZE, seed=3, epoch=1)
    return sum(int((row_lengths(x).max() - row_lengths(x)).sum()) for x, _ in batches)


def test_every_row_occurs_once_and_batches_are_complete(rows: RowSource):
    batches = batches_of(rows)
    assert sorted(row for batch in batches for row in batch) == list(range(700))
    assert [len(batch) for batch in batches] == [BATCH_SIZE] * 43 + [12]


def test_a_batch_has_much_less_padding(rows: RowSource):
    assert count_padding(LengthBuckets(rows, BATCH_SIZE)) < count_padding(rows) / 2


def test_the_order_depends_on_the_epoch_and_short_batches_do_not_come_first(rows: RowSource):
    assert batches_of(rows) == batches_of(rows)
    assert sorted(map(sorted, batches_of(rows, epoch=2))) != sorted(map(sorted, batches_of(rows)))
    lengths = make_rows(700).sum(1)
    means = [lengths[batch].mean() for batch in batches_of(rows)]
    assert means != sorted(means)


@pytest.mark.parametrize("start", [1, 7, 20, 43])
def test_a_resumed_epoch_continues_with_the_same_batches(rows: RowSource, start: int):
    assert batches_of(rows, start=start) == batches_of(rows)[start:]


@pytest.mark.parametrize("seed", [184_500_000, 2**32 - 1])
def test_every_seed_of_a_recipe_gives_an_order(rows: RowSource, seed: int):
    batches = [y.tolist() for _, y in iterate_batches(LengthBuckets(rows, BATCH_SIZE), BATCH_SIZE, seed=seed, epoch=3)]
    assert sorted(row for batch in batches for row in batch) == list(range(700))


def test_the_order_of_a_large_seed_is_unchanged():
    assert window_seed(184_000_000, 1, 2) == (184_000_000 * 100_003 + 1) * 1_000_003 + 2


def test_several_processes_share_each_batch(rows: RowSource):
    buckets = LengthBuckets(rows, BATCH_SIZE)
    parts = [
        [y.tolist() for _, y in iterate_batches(buckets, BATCH_SIZE, seed=3, epoch=1, group=ProcessGroup(rank, 2))]
        for rank in range(2)
    ]
    expected = [sorted(batch) for batch in batches_of(rows)]
    assert [sorted(first + second) for first, second in zip(*parts, strict=True)] == expected


def test_a_few_rows_form_one_batch():
    assert [sorted(batch) for batch in batches_of(in_memory(5))] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize("num_rows", [0, 1, 3, 50])
def test_predictions_have_the_order_of_the_rows(num_rows: int):
    x = torch.from_numpy(make_rows(num_rows)) * torch.arange(1, num_rows + 1)[:, None]
    seen: list[int] = []

    def network(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.shape[1])
        return rows.amax(1, keepdim=True)

    outputs = predict_by_length(network, x, 4, num_rows)
    assert torch.equal(outputs[:, 0], torch.arange(1, num_rows + 1).float())
    assert num_rows < 50 or min(seen) < LENGTH / 2


def test_all_processes_compute_the_same_number_of_batches(monkeypatch: pytest.MonkeyPatch):
    """Of 7 rows with 200 steps, of which one process has 4 and the other 3."""
    monkeypatch.setattr(loop, "all_reduce_sum", lambda sums, group: sums)
    x = torch.ones(7, 200)
    counts = []
    for rank in range(2):
        network = Outputs()
        loop.evaluate(network, Examples(x, torch.zeros(7, dtype=torch.int64), np.arange(7)), ProcessGroup(rank, 2))
        counts.append(network.num_batches)
    assert counts == [3, 3]


class Outputs(torch.nn.Module):
    """Two outputs of each row; counts the batches."""

    trims_padding = True
    num_batches = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_batches += 1
        return x[:, :1].repeat(1, 2)
