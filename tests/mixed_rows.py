"""Inputs of all kinds, a table that has them, and the encoder of their mixed rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, Encoder, fit, partial_statistics

NUMBER = {"kind": "number", "columns": ["size"]}
TEXT = {"kind": "text", "column": "note", "tokenizer": "words", "length": 4, "vocabulary_size": 20}
CITY = {"kind": "category", "columns": ["city"], "encoding": "index"}
PHOTO = {"kind": "image", "column": "photo", "shape": [1, 2, 2]}
SOUND = {
    "kind": "audio",
    "column": "sound",
    "sample_rate": 8,
    "duration_s": 1,
    "window_s": 0.5,
    "step_s": 0.25,
    "num_mels": 2,
}
PATH = {"kind": "sequence", "column": "path", "length": 3, "width": 2}


def make_features(*inputs: dict[str, Any]) -> Features:
    return Features.model_validate({"key": "id", "label": "y", "inputs": inputs})


def make_table(num_rows: int, missing: frozenset[tuple[str, int]] = frozenset()) -> pa.Table:
    random = np.random.default_rng(num_rows)
    columns: dict[str, list[Any]] = {
        "size": random.normal(size=num_rows).tolist(),
        "note": [" ".join(random.choice(["a", "b", "c"], 3)) for _ in range(num_rows)],
        "city": [["x", "y"][row % 2] for row in range(num_rows)],
        "photo": random.integers(0, 255, (num_rows, 4)).tolist(),
        "sound": random.normal(size=(num_rows, 8)).tolist(),
        "path": [random.normal(size=2 * (1 + row % 3)).tolist() for row in range(num_rows)],
    }
    for name, row in missing:
        columns[name][row % num_rows] = None
    types = {"photo": pa.list_(pa.uint8()), "sound": pa.list_(pa.float64()), "path": pa.list_(pa.float64())}
    arrays = {name: pa.array(values, types.get(name)) for name, values in columns.items()}
    return pa.table({"id": range(num_rows), "y": range(num_rows), **arrays})


def fit_encoder(features: Features, table: pa.Table, size: int = 10**6) -> Encoder:
    statistics = partial_statistics(features, table.to_batches(max_chunksize=size))
    return fit(features, [summary[STATISTICS][0].as_py() for summary in statistics])
