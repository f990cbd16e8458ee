"""From prepared Parquet to shuffled training batches: ours, in memory and streamed, and what else there is, in turns.

    python benchmarks/training/loader.py [--rows 500000] [--values 64] [--rounds 3] [--threads 1]

One epoch each, from the closed file to the last batch. `scan` is what Arrow needs to read the file and hand out
nothing. The DataLoader has the usual map data set, one row at a time, given the values in memory, so it has no file to
open per row; Hugging Face's data set has its copy of the file in Arrow's format already, shuffles it and hands out
batches of tensors. Then the loader alone: an epoch of rows that are in memory already. Then the most memory that
streaming a file of `--large` megabytes and a quarter of it takes, each in a process of its own: it must not grow, and
must lie below the size of the larger one.

Hugging Face's is left out where it is not installed; see loop.py.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import DataLoader, Dataset

from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.features.encoder import ENCODED_INPUT, ENCODED_LABEL
from bloomery.models.training.data.batches import iterate_batches, read_examples
from bloomery.models.training.data.streaming import open_stream
from bloomery.tasks.infrastructure.parquet import write_rows

BATCH = 256
Way = Callable[[Path, Layout], int]


class Rows(Dataset):  # type: ignore[type-arg]
    """The usual map data set: one row at a time."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.x, self.y, _ = read_examples(path, "key", layout)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[row], self.y[row]


def scan(path: Path, layout: Layout) -> int:
    return int(pq.read_table(path).num_rows)


def in_memory(path: Path, layout: Layout) -> int:
    return sum(len(y) for _, y in iterate_batches(read_examples(path, "key", layout), BATCH, seed=0, epoch=1))


def streamed(path: Path, layout: Layout) -> int:
    return sum(len(y) for _, y in iterate_batches(open_stream(path, layout), BATCH, seed=0, epoch=1))


def map_style(path: Path, layout: Layout) -> int:
    return sum(len(y) for _, y in DataLoader(Rows(path, layout), batch_size=BATCH, shuffle=True))


def hugging_face() -> Way:
    """Raises ImportError where it is not installed."""
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)

    def way(path: Path, layout: Layout) -> int:
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "hugging-face"))
        shuffled = rows.shuffle(seed=0).with_format("torch", columns=[ENCODED_LABEL, ENCODED_INPUT])
        num_rows = 0
        for batch in shuffled.iter(BATCH):
            assert batch[ENCODED_INPUT].shape[1:] == layout.shape
            num_rows += len(batch[ENCODED_LABEL])
        return num_rows

    return way


def ways() -> dict[str, Way]:
    found: dict[str, Way] = {
        "scan": scan,
        "ours, in memory": in_memory,
        "ours, streamed": streamed,
        "DataLoader": map_style,
    }
    try:
        found["Hugging Face datasets"] = hugging_face()
    except ImportError as failure:
        print(f"Hugging Face datasets is left out: {failure}\n")
    return found


def write(path: Path, num_rows: int, num_values: int) -> None:
    """Rows as the prepare stage leaves them, of values that do not compress."""
    schema = pa.schema([("key", pa.int64()), (ENCODED_LABEL, pa.int64()), (ENCODED_INPUT, pa.list_(pa.float32()))])
    random = np.random.default_rng(0)

    def drawn() -> Iterator[pa.RecordBatch]:
        for start in range(0, num_rows, 65_536):
            size = min(65_536, num_rows - start)
            x = random.random(size=(size, num_values), dtype=np.float32)
            offsets = np.arange(0, x.size + 1, num_values, dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(x.reshape(-1)))
            keys = np.arange(start, start + size)
            yield pa.RecordBatch.from_arrays([pa.array(keys), pa.array(keys % 2), lists], schema=schema)

    write_rows(path, schema, drawn())


def compare(rivals: dict[str, Callable[[], int]], num_rows: int, rounds: int, yardsticks: tuple[str, ...]) -> None:
    """All in turns; the ratios to each yardstick are of the same round."""
    wall: dict[str, list[float]] = {name: [] for name in rivals}
    processor: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(rounds):
        for name, way in rivals.items():
            before = time.perf_counter(), time.process_time()
            assert way() == num_rows
            wall[name].append(time.perf_counter() - before[0])
            processor[name].append(time.process_time() - before[1])
    print(f"| loader | rows/s | seconds | of the processor | {' | '.join(f'of {one}' for one in yardsticks)} |")
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(yardsticks))
    for name in rivals:
        seconds, busy = statistics.median(wall[name]), statistics.median(processor[name])
        against = [_ratios(processor[name], processor[other]) for other in yardsticks]
        print(f"| {name} | {num_rows / seconds:,.0f} | {seconds:.3f} s | {busy:.3f} s | {' | '.join(against)} |")
    print("\nRatios are of the processor's time: the median of the rounds and their range.\n", flush=True)


def compare_from_file(path: Path, num_rows: int, layout: Layout, rounds: int) -> None:
    rivals = {name: partial(way, path, layout) for name, way in ways().items()}
    if "Hugging Face datasets" in rivals:
        rivals["Hugging Face datasets"]()  # makes its copy of the file, which is not counted
    compare(rivals, num_rows, rounds, ("ours, in memory", "scan"))


def compare_alone(path: Path, num_rows: int, layout: Layout, rounds: int) -> None:
    """Epochs of rows that are in memory."""
    held, loader = read_examples(path, "key", layout), DataLoader(Rows(path, layout), batch_size=BATCH, shuffle=True)
    rivals = {
        "ours, in memory": lambda: sum(len(y) for _, y in iterate_batches(held, BATCH, seed=0, epoch=2)),
        "DataLoader": lambda: sum(len(y) for _, y in loader),
    }
    compare(rivals, num_rows, rounds, ("ours, in memory",))


def _ratios(mine: list[float], others: list[float]) -> str:
    ratios = [one / other for one, other in zip(mine, others, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def grow(folder: Path, megabytes: int, num_values: int) -> None:
    """What streaming takes does not grow with the file."""
    peaks = []
    print("| streamed file | most memory | beyond an idle process | rows/s |\n| ---: | ---: | ---: | ---: |")
    for size in (megabytes // 4, megabytes):
        path, num_rows = folder / f"{size}.parquet", size * 1_000_000 // (4 * num_values)
        write(path, num_rows, num_values)
        command = [sys.executable, __file__, "--stream", str(path), "--values", str(num_values)]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        idle, peak, seconds = (float(figure) for figure in printed[-3:])
        peaks.append(peak)
        of_file = f"{path.stat().st_size / 1e6:,.0f} MB"
        print(f"| {of_file} | {peak:,.0f} MB | {peak - idle:,.0f} MB | {num_rows / seconds:,.0f} |", flush=True)
        path.unlink()
    is_constant = peaks[1] < 1.15 * peaks[0] and peaks[1] < megabytes
    told = "constant" if is_constant else "NOT CONSTANT, or not below the file"
    print(f"\nThe memory is {told}: of a file four times as large {peaks[1] / peaks[0]:.2f} times as much.")


def stream_alone(path: Path, layout: Layout) -> None:
    """Prints megabytes before the first batch and at most, and seconds."""
    idle, start = _most_megabytes(), time.perf_counter()
    streamed(path, layout)
    print(idle, _most_megabytes(), time.perf_counter() - start)


def _most_megabytes() -> float:
    """The most of this process's memory so far, as Linux has noted it: a child's own, unlike that of `getrusage`."""
    noted = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert noted is not None
    return int(noted[1]) * 1024 / 1e6


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--rows", type=int, default=500_000)
    asked.add_argument("--values", type=int, default=64)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--threads", type=int, default=1, help="of torch and of Arrow")
    asked.add_argument("--large", type=int, default=1600, help="megabytes of the file that is streamed; 0 for none")
    asked.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    chosen = asked.parse_args()
    torch.set_num_threads(chosen.threads)
    pa.set_cpu_count(chosen.threads)
    layout = Layout(kind="flat", shape=(chosen.values,))
    if chosen.stream is not None:
        stream_alone(chosen.stream, layout)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        write(path, chosen.rows, chosen.values)
        print(
            f"{chosen.rows:,} rows of {chosen.values} values, {path.stat().st_size / 1e6:.0f} MB, {chosen.threads} "
            f"thread(s) of {os.cpu_count()}, {platform.machine()}, Arrow {pa.__version__}, torch {torch.__version__}\n"
        )
        compare_from_file(path, chosen.rows, layout, chosen.rounds)
        compare_alone(path, chosen.rows, layout, chosen.rounds)
        if chosen.large:
            grow(Path(folder), chosen.large, chosen.values)


if __name__ == "__main__":
    main()
