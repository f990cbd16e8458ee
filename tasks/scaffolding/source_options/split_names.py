"""What a file, a folder, an array or a split of a data set is for, by a word in its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from bloomery.models.features.splits import SPLITS

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
ValueT = TypeVar("ValueT")


def in_split_order(values: Mapping[str, ValueT]) -> dict[str, ValueT]:
    """Returns the values by split, in the order of train, val and test."""
    return {split: values[split] for split in SPLITS if split in values}
