"""Streams encoded Parquet files that are larger than memory, as windows of shuffled rows.

An epoch takes the row groups in random order, a few at a time. These are divided into slices; a window is one slice of
each open group, shuffled. So a row may occur anywhere in an epoch, but the rows of a slice always share a window. Two
windows are in memory at a time, besides the pages being read. With several processes, each reads all windows, so that
the order does not depend on the number of processes.

Shapes: W rows of a window, followed by the input's shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL

_OPEN_GROUPS = 8
_WINDOW_VALUES = 16_000_000  # 64 MB
_MAX_DECODED_ROWS = 16_384
_PAGE_BUFFER = 1 << 20


class Window(NamedTuple):
    """Rows in memory: x (W, ...) and y (W,) or (W, K), taken in `order`; the first is row `position` of the epoch."""

    position: int
    x: torch.Tensor
    y: torch.Tensor
    order: torch.Tensor


class _Slices(NamedTuple):
    """Row groups that are open together. Slice `number` of `num_slices` of each group forms a window of `num_rows`."""

    groups: tuple[int, ...]
    num_slices: int
    number: int
    num_rows: int


@dataclass(frozen=True)
class ExampleStream:
    """Encoded rows on disk. `groups` are the numbers of rows of the file's row groups."""

    path: Path
    layout: Layout
    groups: tuple[int, ...]
    window_values: int = _WINDOW_VALUES

    @property
    def num_rows(self) -> int:
        return sum(self.groups)

    def example_batch(self) -> torch.Tensor:
        """A batch of two rows."""
        x, _ = next(self.iterate())
        return x[:2]

    def labels(self, *, read_all: bool) -> torch.Tensor:
        """All labels in the file's order, or an empty tensor of their type."""
        if read_all:
            labels = self._file.read([ENCODED_LABEL])[ENCODED_LABEL].combine_chunks()
            return torch.from_numpy(label_values(labels).copy())
        empty = pa.array([], self._file.schema_arrow.field(ENCODED_LABEL).type)
        return torch.from_numpy(label_values(empty).copy())

    def iterate(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields all rows in the file's order, at most a window at a time."""
        num_rows = max(self.window_values // self.layout.num_values, 2)
        for batch in self._file.iter_batches(num_rows, columns=[ENCODED_LABEL, ENCODED_INPUT]):
            yield _tensors([batch], self.layout)

    def windows(self, seed: int, epoch: int, first: int = 0) -> Iterator[Window]:
        """Yields the windows of an epoch, from the one with row `first`; earlier ones are not read.

        The next window is read while the current one is used.
        """
        with ThreadPoolExecutor(1) as reader:
            windows = self._read(seed, epoch, first)
            next_window = reader.submit(next, windows, None)
            while (window := next_window.result()) is not None:
                next_window = reader.submit(next, windows, None)
                yield window

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, pre_buffer=False, buffer_size=_PAGE_BUFFER)

    def _plan(self, seed: int, epoch: int) -> list[_Slices]:
        random = torch.Generator().manual_seed(seed * 100_003 + epoch)
        order = torch.randperm(len(self.groups), generator=random).tolist()
        plan = []
        for start in range(0, len(order), _OPEN_GROUPS):
            groups = tuple(order[start : start + _OPEN_GROUPS])
            num_values = sum(self.groups[group] for group in groups) * self.layout.num_values
            num_slices = max(-(-num_values // self.window_values), 1)
            for number in range(num_slices):
                sizes = [_slice_num_rows(self.groups[group], number, num_slices) for group in groups]
                plan.append(_Slices(groups, num_slices, number, sum(sizes)))
        return plan

    def _read(self, seed: int, epoch: int, first: int) -> Iterator[Window]:
        plan = self._plan(seed, epoch)
        positions = [0, *itertools.accumulate(window.num_rows for window in plan)]
        readers: list[_GroupReader] = []
        open_groups: tuple[int, ...] = ()
        for number, (window, position) in enumerate(zip(plan, positions, strict=False)):
            if not window.num_rows or positions[number + 1] <= first:
                continue
            if window.groups != open_groups:
                open_groups = window.groups
                readers = [
                    _GroupReader(self._file, group, self.groups[group] // window.num_slices) for group in open_groups
                ]
                for reader, group in zip(readers, window.groups, strict=True):
                    reader.take(self.groups[group] * window.number // window.num_slices)
            sizes = [_slice_num_rows(self.groups[group], window.number, window.num_slices) for group in window.groups]
            rows = [batch for reader, size in zip(readers, sizes, strict=True) for batch in reader.take(size)]
            random = torch.Generator().manual_seed(window_seed(seed, epoch, number))
            yield Window(position, *_tensors(rows, self.layout), torch.randperm(window.num_rows, generator=random))


def window_seed(seed: int, epoch: int, number: int) -> int:
    """The seed of a window's order, in the range that PyTorch's generators accept."""
    return ((seed * 100_003 + epoch) * 1_000_003 + number) % 2**64


def label_values(labels: pa.Array) -> np.ndarray:
    """The encoded labels as numbers (N,), or 0 and 1 for each label of a multilabel task (N, K)."""
    if not pa.types.is_list(labels.type):
        return np.asarray(labels.to_numpy())
    values = pc.list_flatten(labels).to_numpy()
    return np.asarray(values.reshape(len(labels), len(values) // max(len(labels), 1)))


def open_stream(path: Path, layout: Layout) -> ExampleStream:
    """Opens a stream; reads only the file's metadata."""
    metadata = pq.read_metadata(path)
    return ExampleStream(
        path, layout, tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    )


class _GroupReader:
    """Reads one row group sequentially."""

    def __init__(self, file: pq.ParquetFile, group: int, num_rows: int) -> None:
        """Decodes at most `num_rows` rows at a time."""
        rows = min(max(num_rows, 1), _MAX_DECODED_ROWS)
        self._batches = file.iter_batches(
            rows, row_groups=[group], columns=[ENCODED_LABEL, ENCODED_INPUT], use_threads=False
        )
        self._rest: pa.RecordBatch | None = None

    def take(self, num_rows: int) -> list[pa.RecordBatch]:
        """Reads the next `num_rows` rows."""
        slices = []
        while num_rows:
            batch = next(self._batches) if self._rest is None else self._rest
            slices.append(batch.slice(0, num_rows))
            self._rest = batch.slice(num_rows) if batch.num_rows > num_rows else None
            num_rows -= slices[-1].num_rows
        return slices


def _slice_num_rows(num_rows: int, number: int, num_slices: int) -> int:
    return num_rows * (number + 1) // num_slices - num_rows * number // num_slices


def _tensors(batches: list[pa.RecordBatch], layout: Layout) -> tuple[torch.Tensor, torch.Tensor]:
    num_rows = sum(batch.num_rows for batch in batches)
    x = np.empty((num_rows, layout.num_values), np.float32)
    y = np.concatenate([label_values(batch.column(ENCODED_LABEL)) for batch in batches])
    start = 0
    for batch in batches:
        stop = start + batch.num_rows
        x[start:stop] = pc.list_flatten(batch.column(ENCODED_INPUT)).to_numpy().reshape(batch.num_rows, -1)
        start = stop
    return torch.from_numpy(x.reshape(num_rows, *layout.shape)), torch.from_numpy(y)
