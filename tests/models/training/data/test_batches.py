"""Reading encoded Parquet files, and forming batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL, encode, encode_rows
from bloomery.models.training.data import batches as rows_of_file
from bloomery.models.training.data.batches import Examples, iterate_batches, open_examples, read_examples
from bloomery.models.training.process_group import ProcessGroup
from tests.examples import examples


def numbered_rows(num_rows: int) -> Examples:
    """Rows whose input and class are their own number."""
    numbers = torch.arange(num_rows)
    return Examples(numbers.float().reshape(-1, 1, 1, 1), numbers, numbers.numpy())


def row_numbers(examples: Examples, batch_size: int, *, seed: int, epoch: int) -> list[int]:
    return [int(row) for _, y in iterate_batches(examples, batch_size, seed=seed, epoch=epoch) for row in y]


@settings(deadline=None, max_examples=examples(100))
@given(num_rows=st.integers(0, 40), batch_size=st.integers(2, 12), seed=st.integers(0, 10**6), epoch=st.integers(1, 99))
def test_every_row_occurs_once_except_in_a_last_batch_of_one(num_rows, batch_size, seed, epoch):
    row_order = row_numbers(numbered_rows(num_rows), batch_size, seed=seed, epoch=epoch)
    assert len(row_order) == len(set(row_order)) == num_rows - (num_rows % batch_size == 1)


@settings(deadline=None, max_examples=examples(50))
@given(num_rows=st.integers(2, 40), batch_size=st.integers(2, 12), seed=st.integers(0, 99))
def test_all_batches_but_the_last_are_full_and_pair_inputs_with_classes(num_rows, batch_size, seed):
    batches = list(iterate_batches(numbered_rows(num_rows), batch_size, seed=seed, epoch=1))
    assert all(len(y) == batch_size for _, y in batches[:-1])
    assert all(torch.equal(x.flatten(), y.float()) for x, y in batches)


@settings(deadline=None, max_examples=examples(50))
@given(num_rows=st.integers(0, 60), batch_size=st.integers(2, 12), data=st.data())
def test_a_resumed_epoch_is_the_tail_of_an_uninterrupted_one(num_rows, batch_size, data):
    batches = [y.tolist() for _, y in iterate_batches(numbered_rows(num_rows), batch_size, seed=1, epoch=1)]
    start = data.draw(st.integers(0, len(batches)))
    tail = [y.tolist() for _, y in iterate_batches(numbered_rows(num_rows), batch_size, seed=1, epoch=1, start=start)]
    assert tail == batches[start:]


@settings(deadline=None, max_examples=examples(50))
@given(num_rows=st.integers(0, 60), batch_size=st.integers(2, 12), size=st.integers(2, 4))
def test_processes_divide_every_batch(num_rows, batch_size, size):
    rows = numbered_rows(num_rows)
    shares = [
        [y.tolist() for _, y in iterate_batches(rows, batch_size, seed=1, epoch=1, group=ProcessGroup(rank, size))]
        for rank in range(size)
    ]
    joined = [sorted(row for share in step for row in share) for step in zip(*shares, strict=True)]
    single_process = [sorted(y.tolist()) for _, y in iterate_batches(rows, batch_size, seed=1, epoch=1)]
    assert joined == single_process[: len(joined)]


def test_the_order_depends_only_on_seed_and_epoch():
    examples = numbered_rows(200)
    orders = {}
    for seed in (0, 1):
        for epoch in (1, 2):
            torch.manual_seed(epoch)  # the global generator has no effect
            orders[seed, epoch] = row_numbers(examples, 32, seed=seed, epoch=epoch)
            assert row_numbers(examples, 32, seed=seed, epoch=epoch) == orders[seed, epoch]
    assert len({tuple(rows) for rows in orders.values()}) == 4


def test_the_batch_size_does_not_change_the_order():
    assert row_numbers(numbered_rows(60), 10, seed=3, epoch=1) == row_numbers(numbered_rows(60), 60, seed=3, epoch=1)


def test_shuffling_does_not_change_the_global_random_state():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(iterate_batches(numbered_rows(10), 3, seed=1, epoch=1))
    assert torch.equal(torch.rand(3), expected)


def test_reading_examples_inverts_writing_encoded_rows(tmp_path: Path, digits, encoder):
    rows = digits.slice(7, 90)
    pq.write_table(pa.Table.from_batches([encode_rows(encoder, rows)]), tmp_path / "part.parquet", row_group_size=40)
    examples = read_examples(tmp_path / "part.parquet", "id", Layout(kind="image", shape=(1, 8, 8)))
    assert np.array_equal(examples.x.numpy(), encode(encoder, rows))
    assert examples.y.tolist() == rows["label"].to_pylist()
    assert examples.key.tolist() == list(range(7, 97))
    assert (examples.x.dtype, examples.y.dtype) == (torch.float32, torch.int64)


def test_the_values_of_sets_of_labels_decide_too_whether_rows_fit_into_memory(tmp_path, monkeypatch):
    inputs, keys = pa.array([[0.5]] * 10, pa.list_(pa.float32())), pa.array(range(10))
    for name, labels in (
        ("sets", pa.array([[0.0, 1.0, 1.0]] * 10, pa.list_(pa.float32()))),
        ("classes", pa.array([1] * 10, pa.int64())),
    ):
        table = pa.table({key_column("id"): keys, ENCODED_LABEL: labels, ENCODED_INPUT: inputs})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=4)
    layout = Layout(kind="flat", shape=(1,))
    for max_bytes, in_memory in ((160, {"sets", "classes"}), (159, {"classes"}), (39, set())):
        monkeypatch.setattr(rows_of_file, "_MAX_BYTES", max_bytes)
        sources = {name: open_examples(tmp_path / f"{name}.parquet", "id", layout) for name in ("sets", "classes")}
        assert {name for name, source in sources.items() if isinstance(source, Examples)} == in_memory
