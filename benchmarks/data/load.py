"""From prepared Parquet to shuffled training batches: ours, torch's DataLoader over a map data set, and the bare scan.

    python benchmarks/data/load.py --rows 2000000 --values 64 --rounds 3

One epoch each, from the closed file to the last batch, on one thread as training reads. `scan` is what Arrow needs
to read the file and hand out nothing. The DataLoader is given the values in memory, so it has no file to open per row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from data_contracts.layouts import Layout
from models.encoder import CLASS, ENCODED
from models.training.batches import batches, read_examples
from tasks.parquet import write_rows

BATCH = 256


class Rows(Dataset):  # type: ignore[type-arg]
    """The usual map data set: one row at a time."""

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        examples = read_examples(path, "key", Layout(kind="image", shape=shape))
        self.x, self.y = examples.x, examples.y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[row], self.y[row]


def scan(path: Path, shape: tuple[int, ...]) -> int:
    return int(pq.read_table(path).num_rows)


def ours(path: Path, shape: tuple[int, ...]) -> int:
    examples = read_examples(path, "key", Layout(kind="image", shape=shape))
    return sum(len(y) for _, y in batches(examples, BATCH, seed=0, epoch=1))


def loader(path: Path, shape: tuple[int, ...]) -> int:
    return sum(len(y) for _, y in DataLoader(Rows(path, shape), batch_size=BATCH, shuffle=True))


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--rows", type=int, default=2_000_000)
    asked.add_argument("--values", type=int, default=64)
    asked.add_argument("--rounds", type=int, default=3)
    chosen = asked.parse_args()
    torch.set_num_threads(1)
    schema = pa.schema([("key", pa.int64()), (CLASS, pa.int64()), (ENCODED, pa.list_(pa.float32()))])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        random = np.random.default_rng(0)

        def batches() -> pa.RecordBatch:
            for start in range(0, chosen.rows, 65_536):
                size = min(65_536, chosen.rows - start)
                x = random.normal(size=(size, chosen.values)).astype(np.float32)
                offsets = np.arange(0, x.size + 1, chosen.values, dtype=np.int32)
                lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(x.reshape(-1)))
                keys = np.arange(start, start + size)
                yield pa.RecordBatch.from_arrays([pa.array(keys), pa.array(keys % 2), lists], schema=schema)

        write_rows(path, schema, batches())
        print(f"{chosen.rows:,} rows of {chosen.values} values, {path.stat().st_size / 1e6:.0f} MB\n")
        print("| round | scan | ours | DataLoader | DataLoader / ours | ours / scan |\n" + "| ---: " * 6 + "|")
        for turn in range(chosen.rounds):
            seconds = {}
            for way in (scan, ours, loader):
                start = time.perf_counter()
                assert way(path, (chosen.values,)) >= chosen.rows - 1
                seconds[way] = time.perf_counter() - start
            print(
                f"| {turn + 1} | {seconds[scan]:.2f} s | {seconds[ours]:.2f} s | {seconds[loader]:.1f} s "
                f"| {seconds[loader] / seconds[ours]:.1f}x | {seconds[ours] / seconds[scan]:.2f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
