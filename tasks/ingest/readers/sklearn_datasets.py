"""The data sets that scikit-learn bundles."""

from __future__ import annotations

import importlib.metadata
import re
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.data_source import DataSource, SourceFile
from bloomery.tasks.ingest.readers.base import MalformedWriter, RowStream

if TYPE_CHECKING:
    from sklearn.utils import Bunch

DATASET_NAMES = ("breast_cancer", "diabetes", "digits", "iris", "wine")


def read(data: DataSource, origin: SourceFile, malformed: MalformedWriter) -> RowStream:
    """Returns `id`, the columns, and `label` with the name of the class, or `target` where there are no classes.

    The digits are the UCI test set without its writers: `id`, `image` (64 values from 0 to 16) and `label`.
    """
    from sklearn import datasets

    name = _dataset_name(origin)
    bundled = getattr(datasets, f"load_{name}")()
    table = pa.table({"id": pa.array(range(len(bundled.target)), pa.int64()), **_to_columns(name, bundled)})
    return RowStream(table.schema, iter(table.combine_chunks().to_batches()))


def identify(data: DataSource, origin: SourceFile) -> list[object]:
    """Returns the data set's name and the version of scikit-learn.

    Raises:
        DataMissing: scikit-learn bundles no such data set.
    """
    return [_dataset_name(origin), importlib.metadata.version("scikit-learn")]


def _dataset_name(origin: SourceFile) -> str:
    name = origin.source.removeprefix("sklearn:")
    if name not in DATASET_NAMES:
        raise DataMissing(
            f"scikit-learn bundles no data set {name!r} that Bloomery reads",
            required=f"one of {', '.join(f'sklearn:{dataset}' for dataset in DATASET_NAMES)}, or a path",
            where="the recipe's data.source",
            remedy="correct the name, or give the path of a file",
        )
    return name


def _to_columns(name: str, bundled: Bunch) -> dict[str, pa.Array]:
    if name == "digits":
        image = pa.array(list(bundled.data.astype("uint8")), pa.list_(pa.uint8()))
        return {"image": image, "label": pa.array(bundled.target, pa.int64())}
    columns = {
        _to_identifier(str(feature)): pa.array(np.ascontiguousarray(bundled.data[:, index]))
        for index, feature in enumerate(bundled.feature_names)
    }
    if name == "diabetes":
        return {**columns, "target": pa.array(bundled.target)}
    return {**columns, "label": pa.array([str(bundled.target_names[index]) for index in bundled.target], pa.string())}


def _to_identifier(name: str) -> str:
    """Turns `sepal length (cm)` into `sepal_length_cm`."""
    return re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").lower()
