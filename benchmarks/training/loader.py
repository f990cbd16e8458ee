"""Measures loaders from prepared Parquet to shuffled training batches: Bloomery's and others, in turns.

    python benchmarks/training/loader.py [--rows 500000] [--values 64] [--rounds 3] [--threads 1]

It prints three tables:

- One epoch of each loader, from opening the file to the last batch. `scan` only reads the file with Arrow and yields no
  batches. The DataLoader has a map-style data set of rows in memory. Hugging Face's data set already has its own copy
  of the file in Arrow's format, and yields shuffled batches of tensors. It is left out where it is not installed
  (`loop.py` shows how to install it).
- One epoch from rows that are already in memory.
- The peak memory of streaming a file of `--large` megabytes, and one of a quarter of that size, each in a process of
  its own. The peak must not grow with the file, and must be below the size of the larger file.
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
from collections.abc import Callable, Iterator, Mapping
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
Loader = Callable[[Path, Layout], int]


class Rows(Dataset):  # type: ignore[type-arg]
    """A map-style data set: one row at a time."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.x, self.y, _ = read_examples(path, "key", layout)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[row], self.y[row]


def scan(path: Path, layout: Layout) -> int:
    """Returns the number of rows, as all loaders do."""
    return int(pq.read_table(path).num_rows)


def load_in_memory(path: Path, layout: Layout) -> int:
    return sum(len(y) for _, y in iterate_batches(read_examples(path, "key", layout), BATCH, seed=0, epoch=1))


def load_by_streaming(path: Path, layout: Layout) -> int:
    return sum(len(y) for _, y in iterate_batches(open_stream(path, layout), BATCH, seed=0, epoch=1))


def load_by_data_loader(path: Path, layout: Layout) -> int:
    return sum(len(y) for _, y in DataLoader(Rows(path, layout), batch_size=BATCH, shuffle=True))


def hugging_face_loader() -> Loader:
    """Returns a loader that uses Hugging Face's `datasets`.

    Raises:
        ImportError: `datasets` is not installed.
    """
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)

    def load(path: Path, layout: Layout) -> int:
        rows = datasets.Dataset.from_parquet(str(path), cache_dir=str(path.parent / "hugging-face"))
        shuffled = rows.shuffle(seed=0).with_format("torch", columns=[ENCODED_LABEL, ENCODED_INPUT])
        num_rows = 0
        for batch in shuffled.iter(BATCH):
            assert batch[ENCODED_INPUT].shape[1:] == layout.shape
            num_rows += len(batch[ENCODED_LABEL])
        return num_rows

    return load


def available_loaders() -> dict[str, Loader]:
    loaders: dict[str, Loader] = {
        "scan": scan,
        "Bloomery, in memory": load_in_memory,
        "Bloomery, streamed": load_by_streaming,
        "DataLoader": load_by_data_loader,
    }
    try:
        loaders["Hugging Face datasets"] = hugging_face_loader()
    except ImportError as error:
        print(f"Hugging Face datasets is left out: {error}\n")
    return loaders


def write_encoded_rows(path: Path, num_rows: int, num_values: int) -> None:
    """Writes rows as the stage `prepare` encodes them, with values that do not compress."""
    schema = pa.schema([("key", pa.int64()), (ENCODED_LABEL, pa.int64()), (ENCODED_INPUT, pa.list_(pa.float32()))])
    random = np.random.default_rng(0)

    def generate_batches() -> Iterator[pa.RecordBatch]:
        for start in range(0, num_rows, 65_536):
            size = min(65_536, num_rows - start)
            x = random.random(size=(size, num_values), dtype=np.float32)
            offsets = np.arange(0, x.size + 1, num_values, dtype=np.int32)
            lists = pa.ListArray.from_arrays(pa.array(offsets), pa.array(x.reshape(-1)))
            keys = np.arange(start, start + size)
            yield pa.RecordBatch.from_arrays([pa.array(keys), pa.array(keys % 2), lists], schema=schema)

    write_rows(path, schema, generate_batches())


def compare(loaders: Mapping[str, Callable[[], int]], num_rows: int, rounds: int, baselines: tuple[str, ...]) -> None:
    """Measures all loaders in turns, and prints a table. A ratio compares with a baseline within one round."""
    wall: dict[str, list[float]] = {name: [] for name in loaders}
    processor: dict[str, list[float]] = {name: [] for name in loaders}
    for _ in range(rounds):
        for name, load in loaders.items():
            before = time.perf_counter(), time.process_time()
            assert load() == num_rows
            wall[name].append(time.perf_counter() - before[0])
            processor[name].append(time.process_time() - before[1])
    print(
        f"| loader | rows/s | seconds | processor seconds | {' | '.join(f'relative to {name}' for name in baselines)} |"
    )
    print("| --- | ---: | ---: | ---: |" + " ---: |" * len(baselines))
    for name in loaders:
        wall_s, processor_s = statistics.median(wall[name]), statistics.median(processor[name])
        ratios = [_format_ratios(processor[name], processor[baseline]) for baseline in baselines]
        print(f"| {name} | {num_rows / wall_s:,.0f} | {wall_s:.3f} s | {processor_s:.3f} s | {' | '.join(ratios)} |")
    print("\nRatios are of processor time: the median over the rounds, and their range.\n", flush=True)


def compare_from_file(path: Path, num_rows: int, layout: Layout, rounds: int) -> None:
    loaders = {name: partial(load, path, layout) for name, load in available_loaders().items()}
    if "Hugging Face datasets" in loaders:
        loaders["Hugging Face datasets"]()  # creates its copy of the file, which is not measured
    compare(loaders, num_rows, rounds, ("Bloomery, in memory", "scan"))


def compare_in_memory(path: Path, num_rows: int, layout: Layout, rounds: int) -> None:
    """Compares epochs of rows that are already in memory."""
    examples = read_examples(path, "key", layout)
    data_loader = DataLoader(Rows(path, layout), batch_size=BATCH, shuffle=True)
    loaders = {
        "Bloomery, in memory": lambda: sum(len(y) for _, y in iterate_batches(examples, BATCH, seed=0, epoch=2)),
        "DataLoader": lambda: sum(len(y) for _, y in data_loader),
    }
    compare(loaders, num_rows, rounds, ("Bloomery, in memory",))


def _format_ratios(figures: list[float], baseline: list[float]) -> str:
    ratios = [figure / base for figure, base in zip(figures, baseline, strict=True)]
    return f"{statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def compare_streaming_memory(folder: Path, megabytes: int, num_values: int) -> None:
    """Prints the peak memory of streaming two files, and whether it stays constant."""
    peaks = []
    print("| streamed file | peak memory | above idle process | rows/s |\n| ---: | ---: | ---: | ---: |")
    for size in (megabytes // 4, megabytes):
        path, num_rows = folder / f"{size}.parquet", size * 1_000_000 // (4 * num_values)
        write_encoded_rows(path, num_rows, num_values)
        command = [sys.executable, __file__, "--stream", str(path), "--values", str(num_values)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        idle, peak, seconds = (float(figure) for figure in output[-3:])
        peaks.append(peak)
        file_size = f"{path.stat().st_size / 1e6:,.0f} MB"
        print(f"| {file_size} | {peak:,.0f} MB | {peak - idle:,.0f} MB | {num_rows / seconds:,.0f} |", flush=True)
        path.unlink()
    is_constant = peaks[1] < 1.15 * peaks[0] and peaks[1] < megabytes
    verdict = "constant" if is_constant else "NOT CONSTANT, or not below the size of the file"
    print(f"\nThe peak memory is {verdict}: a file four times as large takes {peaks[1] / peaks[0]:.2f} times as much.")


def measure_streaming(path: Path, layout: Layout) -> None:
    """Streams the file, and prints the megabytes before the first batch, the peak in megabytes, and the seconds."""
    idle, start = _peak_megabytes(), time.perf_counter()
    load_by_streaming(path, layout)
    print(idle, _peak_megabytes(), time.perf_counter() - start)


def _peak_megabytes() -> float:
    """Returns the peak memory of this process. `getrusage` would include the parent's peak before the exec."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert match is not None
    return int(match[1]) * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--values", type=int, default=64, help="values per row")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch and of Arrow")
    parser.add_argument("--large", type=int, default=1600, help="megabytes of the larger streamed file; 0 streams none")
    parser.add_argument("--stream", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pa.set_cpu_count(options.threads)
    layout = Layout(kind="flat", shape=(options.values,))
    if options.stream is not None:
        measure_streaming(options.stream, layout)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.parquet"
        write_encoded_rows(path, options.rows, options.values)
        print(
            f"{options.rows:,} rows of {options.values} values, {path.stat().st_size / 1e6:.0f} MB, {options.threads} "
            f"thread(s) of {os.cpu_count()}, {platform.machine()}, Arrow {pa.__version__}, torch {torch.__version__}\n"
        )
        compare_from_file(path, options.rows, layout, options.rounds)
        compare_in_memory(path, options.rows, layout, options.rounds)
        if options.large:
            compare_streaming_memory(Path(folder), options.large, options.values)


if __name__ == "__main__":
    main()
