"""Streaming rows from disk: their order, resuming, memory, and training on a stream."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL
from bloomery.models.training.config import Loop
from bloomery.models.training.data import batches as rows_of_file
from bloomery.models.training.data.batches import (
    TrainingData,
    iterate_batches,
    num_batches,
    open_examples,
    read_examples,
    sample_examples,
)
from bloomery.models.training.data.streaming import ExampleStream, open_stream
from bloomery.models.training.loop import evaluate, train
from bloomery.models.training.process_group import ProcessGroup
from tests.examples import examples

WIDTH = 3
LAYOUT = Layout(kind="flat", shape=(WIDTH,))


def write(path: Path, num_rows: int, group_rows: int, kind: type = np.int64) -> Path:
    """Rows whose key, label and first value are the row number; labels have the type `kind`."""
    numbers = np.arange(num_rows)
    values = np.stack([numbers, numbers % 7, numbers % 5], axis=1).astype(np.float32)
    table = pa.table(
        {
            "id": numbers,
            ENCODED_LABEL: numbers.astype(kind),
            ENCODED_INPUT: pa.array(list(values), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, path, row_group_size=group_rows)
    return path


def stream_of(folder: Path, num_rows: int, group_rows: int, window_rows: int) -> ExampleStream:
    path = folder / f"{num_rows}-{group_rows}.parquet"
    stream = open_stream(path if path.exists() else write(path, num_rows, group_rows), LAYOUT)
    return ExampleStream(stream.path, LAYOUT, stream.groups, window_values=window_rows * WIDTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("streams")


FILES = {"num_rows": st.integers(2, 300), "group_rows": st.sampled_from([1, 7, 40, 1000])}
READING = {"window_rows": st.integers(1, 400), "batch_size": st.integers(2, 33)}


@settings(deadline=None, max_examples=examples(60))
@given(**FILES, **READING, seed=st.integers(0, 99), epoch=st.integers(1, 9))
def test_every_row_occurs_once_in_full_batches(folder, num_rows, group_rows, window_rows, batch_size, seed, epoch):
    stream = stream_of(folder, num_rows, group_rows, window_rows)
    batches = list(iterate_batches(stream, batch_size, seed=seed, epoch=epoch))
    row_order = torch.cat([y for _, y in batches]).tolist() if batches else []
    assert len(batches) == num_batches(stream, batch_size)
    assert len(set(row_order)) == len(row_order) == num_rows - (num_rows % batch_size == 1)
    assert all(len(y) == batch_size for _, y in batches[:-1])
    assert all(torch.equal(x[:, 0], y.float()) for x, y in batches)


@settings(deadline=None, max_examples=examples(60))
@given(**FILES, **READING, data=st.data())
def test_a_resumed_epoch_is_the_tail_of_an_uninterrupted_one(
    folder, num_rows, group_rows, window_rows, batch_size, data
):
    stream = stream_of(folder, num_rows, group_rows, window_rows)
    batches = [y.tolist() for _, y in iterate_batches(stream, batch_size, seed=1, epoch=2)]
    start = data.draw(st.integers(0, len(batches)))
    assert [y.tolist() for _, y in iterate_batches(stream, batch_size, seed=1, epoch=2, start=start)] == batches[start:]


@settings(deadline=None, max_examples=examples(40))
@given(**FILES, **READING, size=st.integers(2, 4))
def test_processes_divide_every_batch(folder, num_rows, group_rows, window_rows, batch_size, size):
    stream = stream_of(folder, num_rows, group_rows, window_rows)
    shares = [
        [y.tolist() for _, y in iterate_batches(stream, batch_size, seed=1, epoch=1, group=ProcessGroup(rank, size))]
        for rank in range(size)
    ]
    joined = [sorted(row for share in step for row in share) for step in zip(*shares, strict=True)]
    single_process = [sorted(y.tolist()) for _, y in iterate_batches(stream, batch_size, seed=1, epoch=1)]
    assert joined == single_process[: len(joined)]
    assert len(joined) == num_batches(stream, batch_size, ProcessGroup(0, size))


def test_orders_differ_by_epoch_and_seed_and_are_reproducible(folder):
    stream = stream_of(folder, 300, 40, 100)
    orders = {
        (seed, epoch): tuple(torch.cat([y for _, y in iterate_batches(stream, 32, seed=seed, epoch=epoch)]).tolist())
        for seed in (0, 1)
        for epoch in (1, 2)
    }
    assert len(set(orders.values())) == 4
    assert orders[1, 2] == tuple(torch.cat([y for _, y in iterate_batches(stream, 32, seed=1, epoch=2)]).tolist())


def test_the_first_batch_has_rows_from_several_groups_of_a_sorted_file(folder):
    stream = stream_of(folder, 3000, 100, 200)
    _, y = next(iterate_batches(stream, 64, seed=0, epoch=1))
    assert len(set((y // 100).tolist())) >= 6


def test_skipped_windows_are_not_read(folder, monkeypatch):
    stream = stream_of(folder, 3000, 100, 800)
    groups_read: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def record_groups(self, *arguments, row_groups, **options):
        groups_read.extend(row_groups)
        return iter_batches(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", record_groups)
    list(iterate_batches(stream, 100, seed=0, epoch=1, start=25))
    assert len(groups_read) <= 8 + 6


def test_memory_does_not_grow_with_the_file(tmp_path):
    peaks = []
    for num_rows in (40_000, 160_000):
        stream = stream_of(tmp_path, num_rows, 5_000, 4_000)
        tracemalloc.start()
        assert sum(len(y) for _, y in iterate_batches(stream, 500, seed=0, epoch=1)) == num_rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_large_splits_are_streamed_and_small_ones_are_not(folder, monkeypatch):
    path = stream_of(folder, 300, 40, 100).path
    assert open_examples(path, "id", LAYOUT).num_rows == 300
    assert not isinstance(open_examples(path, "id", LAYOUT), ExampleStream)
    monkeypatch.setattr(rows_of_file, "_MAX_BYTES", 1000)
    assert isinstance(open_examples(path, "id", LAYOUT), ExampleStream)


def test_a_sample_is_even(folder):
    path = stream_of(folder, 300, 40, 100).path
    sample = sample_examples(path, "id", LAYOUT, 50)
    assert sample.key.tolist() == sample.y.tolist() == sample.x[:, 0].tolist() == list(range(0, 300, 6))


def test_training_and_evaluation_accept_a_stream(tmp_path):
    path = write(tmp_path / "figures.parquet", 500, 60, np.float32)
    stream, examples = open_stream(path, LAYOUT), read_examples(path, "id", LAYOUT)
    torch.manual_seed(0)
    network = nn.Linear(WIDTH, 1)
    assert evaluate(network, stream) == pytest.approx(evaluate(network, examples))
    epochs = train(network, TrainingData(stream, stream), Loop(epochs=3, batch_size=20))
    assert epochs[-1].train_loss < epochs[0].train_loss


def test_balanced_weights_count_the_labels_of_a_stream(tmp_path):
    stream = stream_of(tmp_path, 60, 7, 100)
    assert stream.labels(read_all=True).tolist() == list(range(60))
    assert stream.labels(read_all=False).dtype == torch.int64
    assert stream.example_batch().shape == (2, WIDTH)
