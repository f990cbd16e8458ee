"""Reads encoded Parquet as tensors, and forms batches.

Shapes: N rows, B rows of a batch, followed by the input's shape.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.records.key_column import key_column
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL
from bloomery.models.training.data.streaming import ExampleStream, Window, label_values, open_stream
from bloomery.models.training.optimization.score_measure import ScoreMeasure
from bloomery.models.training.optimization.tag_loss import is_tagging
from bloomery.models.training.process_group import SINGLE_PROCESS, ProcessGroup

Batch = tuple[torch.Tensor, torch.Tensor]  # x (B, ...), y (B,) or (B, K)
Array = TypeVar("Array", torch.Tensor, np.ndarray)

_MAX_BYTES = 1 << 30  # of values kept in memory
_GROUP_ROWS, _GROUP_VALUES = 65_536, 65_536 * 1_024  # read at once; fewer rows where these are wide
_BLOCK_VALUES = 500_000  # 2 MB, which fits into a CPU cache


class Examples(NamedTuple):
    """Encoded rows in memory: x float32 (N, ...), y, and key numpy (N,).

    y is int64 (N,), float32 (N,) of a regression, or float32 (N, K) of a multilabel task.
    """

    x: torch.Tensor
    y: torch.Tensor
    key: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.y)

    def example_batch(self) -> torch.Tensor:
        """A batch of two rows."""
        return self.x[:2]

    def labels(self, *, read_all: bool) -> torch.Tensor:
        """All labels, even if only their type is needed."""
        return self.y

    def iterate(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yields all rows at once."""
        yield self.x, self.y

    def windows(self, seed: int, epoch: int, first: int = 0) -> Iterator[Window]:
        """Yields one window with all rows, for any `first`."""
        order = torch.randperm(len(self.y), generator=torch.Generator().manual_seed(seed * 100_003 + epoch))
        yield Window(0, self.x, self.y, order)


ExampleSource = Examples | ExampleStream


class RowSource(Protocol):
    """Rows that batches are made of: in memory, on disk, or in another order."""

    @property
    def num_rows(self) -> int: ...

    def windows(self, seed: int, epoch: int, first: int = 0) -> Iterator[Window]:
        """Yields the windows of an epoch, at least from the one with row `first`."""


@dataclass(frozen=True)
class TrainingData:
    """The rows that a training reads.

    Attributes:
        train: the rows that the network learns from.
        val: the rows that select the best epoch.
        seed: determines the order and the augmentation of the training rows.
        measure: computes the score of the validation rows; None computes accuracy, or RMSE in standard units.
        has_row_losses: the outputs of the network are the losses of its rows (B,), and labels do not count.
    """

    train: ExampleSource
    val: ExampleSource
    seed: int = 0
    measure: ScoreMeasure | None = None
    has_row_losses: bool = False


def open_examples(path: Path, key: str, layout: Layout) -> ExampleSource:
    """Opens an encoded Parquet file: in memory, or streamed from disk if it is large.

    The limit does not depend on the machine, because the order of rows, and so the weights, depend on it.
    """
    metadata = pq.read_metadata(path)
    num_values = metadata.num_rows * layout.num_values + _count_set_values(metadata)
    return read_examples(path, key, layout) if num_values * 4 <= _MAX_BYTES else open_stream(path, layout)


def _count_set_values(metadata: pq.FileMetaData) -> int:
    """The number of values in sets of labels, one for each label and row; 0 where rows have one label."""
    row_groups = map(metadata.row_group, range(metadata.num_row_groups))
    columns = (group.column(number) for group in row_groups for number in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.startswith(f"{ENCODED_LABEL}."))


def sample_examples(path: Path, key: str, layout: Layout, num_rows: int) -> Examples:
    """About `num_rows` rows, evenly spaced over the file, in its order."""
    step = max(pq.read_metadata(path).num_rows // num_rows, 1)
    return read_examples(path, key, layout, step)


def read_examples(path: Path, key: str, layout: Layout, step: int = 1) -> Examples:
    """Reads all rows of an encoded Parquet file, or every `step`-th, in order. One batch is in memory twice."""
    key, batch_rows = key_column(key), max(min(_GROUP_ROWS, _GROUP_VALUES // layout.num_values), 1)
    with pq.ParquetFile(path, pre_buffer=False) as file:
        num_rows = -(-file.metadata.num_rows // step)
        x = np.empty((num_rows, layout.num_values), np.float32)
        labels = [label_values(pa.array([], file.schema_arrow.field(ENCODED_LABEL).type))]
        keys = [np.empty(0, file.schema_arrow.field(key).type.to_pandas_dtype())]
        start, num_read = 0, 0
        for batch in file.iter_batches(batch_rows, columns=[key, ENCODED_LABEL, ENCODED_INPUT]):
            positions = slice(-num_read % step, None, step)
            num_read += batch.num_rows
            values = pc.list_flatten(batch.column(ENCODED_INPUT)).to_numpy().reshape(batch.num_rows, -1)[positions]
            stop = start + len(values)
            x[start:stop] = values
            labels.append(label_values(batch.column(ENCODED_LABEL))[positions])
            keys.append(batch.column(key).to_numpy(zero_copy_only=False)[positions])
            start = stop
    x_of_rows = torch.from_numpy(x.reshape(num_rows, *layout.shape))
    y = torch.from_numpy(np.concatenate(labels[1:] or labels))
    return Examples(x_of_rows, y, np.concatenate(keys[1:] or keys))


def iterate_parts(examples: ExampleSource, num_rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields all rows; those of tags in equal parts of at most `num_rows`, since they have outputs for each token.

    A remainder of few rows would leave processes that divide a part without any.
    """
    for x, y in examples.iterate():
        num_parts = max(-(-len(y) // num_rows), 1) if is_tagging(y) else 1
        yield from zip(x.tensor_split(num_parts), y.tensor_split(num_parts), strict=True)


def join_rows(rows: ExampleSource, further_rows: ExampleSource) -> Examples:
    """The rows of both, whose labels are not read: y is 0.

    Raises:
        DataUnfit: a part is too large for memory.
    """
    if not isinstance(rows, Examples) or not isinstance(further_rows, Examples):
        raise DataUnfit(
            "the rows with and without a label are together too large for memory",
            required=f"at most {_MAX_BYTES >> 30} GiB of encoded values in each part",
            where="the encoded training rows",
            remedy="use fewer rows; or leave out `unlabelled: teach`, and the rows without a label in the data",
        )
    x = torch.cat([rows.x, further_rows.x])
    return Examples(x, torch.zeros(len(x), dtype=torch.int64), np.concatenate([rows.key, further_rows.key]))


def even_sample(rows: Array, min_rows: int) -> Array:
    """An even sample of at least `min_rows` and fewer than twice as many rows, or all rows if there are fewer.

    Rows are sorted by key, which is independent of the label, so every n-th row is an even sample.
    """
    return rows[:: max(len(rows) // min_rows, 1)]


def num_batches(rows: RowSource, batch_size: int, group: ProcessGroup = SINGLE_PROCESS) -> int:
    """The batches of one epoch. The last one needs two rows per process, for batch normalisation."""
    num_full, remainder = divmod(rows.num_rows, batch_size)
    return num_full + (remainder >= 2 * group.size)


def batch_num_rows(rows: RowSource, batch_size: int, number: int) -> int:
    """The rows of batch `number` (from 0), over all processes."""
    return min(batch_size, rows.num_rows - number * batch_size)


def iterate_batches(
    rows: RowSource, batch_size: int, *, seed: int, epoch: int, start: int = 0, group: ProcessGroup = SINGLE_PROCESS
) -> Iterator[Batch]:
    """Yields the batches of an epoch from number `start`, in an order that depends on file, seed and epoch only.

    With several processes, each takes its part of every batch.
    """
    end = num_batches(rows, batch_size, group) * batch_size
    pieces: list[Batch] = []  # pieces of a batch with rows from several windows
    for position, x, y, order in rows.windows(seed, epoch, start * batch_size):
        order = order[: max(end - position, 0)]
        # The first rows complete the last batch of the previous window.
        head, body = order.tensor_split([min(-position % batch_size, len(order))])
        if len(head) and position + len(head) > start * batch_size:
            pieces.append((x.index_select(0, head), y.index_select(0, head)))
        full_order, tail = body.tensor_split([len(body) // batch_size * batch_size])
        if (position + len(head)) % batch_size == 0:
            yield from _join_pieces(pieces, group)
            pieces = []
            skipped = max(start - (position + len(head)) // batch_size, 0)
            yield from itertools.islice(_full_batches(x, y, full_order, batch_size, skipped, group), skipped, None)
            if len(tail) and position + len(order) > start * batch_size:
                pieces.append((x.index_select(0, tail), y.index_select(0, tail)))
    yield from _join_pieces(pieces, group)


def _full_batches(
    x: torch.Tensor, y: torch.Tensor, order: torch.Tensor, batch_size: int, skipped: int, group: ProcessGroup
) -> Iterator[Batch]:
    """Yields complete batches. The first `skipped` ones may be empty."""
    # Rows of many batches are gathered at once, because a small gather is dominated by call overhead.
    per_block = max(_BLOCK_VALUES // (batch_size * max(x[:1].numel(), 1)), 1)
    for number, block in enumerate(order.split(per_block * batch_size) if len(order) else ()):
        own_rows = [batch[group.rank :: group.size] for batch in block.split(batch_size)]
        if (number + 1) * per_block <= skipped:
            yield from ((x[:0], y[:0]) for _ in own_rows)
            continue
        # Blocks do not depend on `start`, since the bits of a product may depend on memory alignment.
        sizes = [len(batch) for batch in own_rows]
        rows = torch.cat(own_rows)
        yield from zip(x.index_select(0, rows).split(sizes), y.index_select(0, rows).split(sizes), strict=True)


def _join_pieces(pieces: list[Batch], group: ProcessGroup) -> Iterator[Batch]:
    if pieces:
        x, y = (torch.cat(columns) for columns in zip(*pieces, strict=True))
        yield x[group.rank :: group.size].contiguous(), y[group.rank :: group.size].contiguous()
