"""Prints the candidate that each run in a state folder has chosen: size, time, score and weakest class.

    python benchmarks/compression/chosen.py before=HOME after=HOME

Each HOME is the value of BLOOMERY_HOME of earlier runs. They may be runs of different versions of Bloomery, since only
the stored records of the stage `choose` are read, and the predictions that they name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

_PREDICTIONS = ("predictions_uri", "answers_uri")  # by version
_CLASSES = ("prediction", "answer")
_TITLES = [
    "data",
    "run",
    "chosen",
    "size",
    "of fp32",
    "time of one row",
    "of fp32",
    "score",
    "score of fp32",
    "weakest class",
]


def main() -> None:
    folders = [argument.partition("=")[::2] for argument in sys.argv[1:]]
    paths = [(title, Path(folder), path) for title, folder in folders for path in find_choices(Path(folder))]
    rows = [
        describe_choice(title, folder, json.loads(path.read_text(encoding="utf-8"))["record"])
        for title, folder, path in paths
    ]
    print("| " + " | ".join(_TITLES) + " |\n" + "| --- " * len(_TITLES) + "|")
    for row in sorted(rows):
        print("| " + " | ".join(row) + " |")


def find_choices(folder: Path) -> list[Path]:
    return sorted(folder.glob("stages/choose/*/record.json"))


def describe_choice(title: str, home: Path, record: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table, in the order of `_TITLES`."""
    chosen = record["candidate"]
    measured = next(values for values in find_lists(record, "name", chosen["name"]) if len(values) > 1)
    baseline = next(candidate for candidate in measured if candidate["name"] == "fp32")
    latency = chosen["latencies"][0]
    return (
        find_contract_name(record),
        title,
        chosen["name"],
        f"{chosen['size_bytes'] / 1000:.1f} kB",
        f"{chosen['size_bytes'] / baseline['size_bytes']:.2f}",
        f"{1000 * latency['p50_ms']:.0f} µs",
        f"{latency['ratio']['value']:.2f}",
        f"{chosen['score']['value']:.4g}",
        f"{baseline['score']['value']:.4g}",
        describe_weakest_class(home, chosen),
    )


def describe_weakest_class(home: Path, candidate: dict[str, Any]) -> str:
    """The class of lowest recall among the test rows; empty of a regression."""
    table = pq.read_table(home / next(candidate[name] for name in _PREDICTIONS if name in candidate))
    if "probabilities" not in table.column_names:
        return ""
    predictions = next(table[name] for name in _CLASSES if name in table.column_names).to_pylist()
    truth = table["truth"].to_pylist()
    recalls = {}
    for name in sorted(set(truth), key=str):
        is_right = [prediction == name for prediction, label in zip(predictions, truth, strict=True) if label == name]
        recalls[name] = sum(is_right) / len(is_right)
    weakest = min(recalls, key=lambda name: recalls[name])
    return f"{recalls[weakest]:.1%} {weakest}"


def find_lists(value: Any, key: str, expected: str) -> Iterator[list[dict[str, Any]]]:
    """Every list below `value` with an item whose `key` is `expected` and which was measured."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if isinstance(value, list) and any(
        isinstance(item, dict) and item.get(key) == expected and "latencies" in item for item in value
    ):
        yield value
    for child in children:
        yield from find_lists(child, key, expected)


def find_contract_name(value: Any) -> str:
    """The name of the contract, wherever the record has it."""
    pending = [value]
    while pending:
        item = pending.pop(0)
        if isinstance(item, dict):
            if isinstance(item.get("contract"), dict) and "name" in item["contract"]:
                return str(item["contract"]["name"])
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return "?"


if __name__ == "__main__":
    main()
