"""The sets that scikit-learn carries."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import Data, Origin
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream

DATASET_NAMES = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def read(data: Data, origin: Origin, malformed: MalformedWriter) -> RowStream:
    """`id`, the columns, and `label` as the name of the class; `target` for what is no class.

    The digits are the UCI test part, without its writers: `id`, `image` (64 values from 0 to 16) and `label`.
    """
    from sklearn import datasets

    carried = getattr(datasets, f"load_{_name(origin)}")()
    table = pa.table({"id": pa.array(range(len(carried.target)), pa.int64()), **_columns(_name(origin), carried)})
    return RowStream(table.schema, iter(table.combine_chunks().to_batches()))


def identify(data: Data, origin: Origin) -> list[object]:
    """The set's name and the version of scikit-learn.

    Raises:
        DataMissing: scikit-learn carries no such set.
    """
    return [_name(origin), importlib.metadata.version("scikit-learn")]


def _name(origin: Origin) -> str:
    name = origin.source.removeprefix("sklearn:")
    if name not in DATASET_NAMES:
        raise DataMissing(
            f"scikit-learn carries no set {name!r} that Bloomery reads",
            required=f"one of {', '.join(f'sklearn:{known}' for known in DATASET_NAMES)}, or a path",
            where="the recipe's data.source",
            remedy="mend the name, or give the path of a file",
        )
    return name


def _columns(name: str, carried: Any) -> dict[str, pa.Array]:
    if name == "digits":
        image = pa.array(list(carried.data.astype("uint8")), pa.list_(pa.uint8()))
        return {"image": image, "label": pa.array(carried.target, pa.int64())}
    columns = {
        _identifier(str(feature)): pa.array(np.ascontiguousarray(carried.data[:, position]))
        for position, feature in enumerate(carried.feature_names)
    }
    if name == "diabetes":
        return {**columns, "target": pa.array(carried.target)}
    return {**columns, "label": pa.array([str(carried.target_names[index]) for index in carried.target], pa.string())}


def _identifier(name: str) -> str:
    """`sepal length (cm)` is `sepal_length_cm`."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
