"""What is summed up over the batches of a column: its range, and how often each value occurs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MAX_COUNTED_VALUES = 2_000  # distinct values of a column that are counted one by one


class Range:
    """The smallest and the largest of the added values."""

    def __init__(self) -> None:
        self.minimum: Any = None
        self.maximum: Any = None

    def add(self, values: pa.Array) -> None:
        if len(values) > values.null_count:
            limits = pc.min_max(values).as_py()
            self.minimum = limits["min"] if self.minimum is None else min(self.minimum, limits["min"])
            self.maximum = limits["max"] if self.maximum is None else max(self.maximum, limits["max"])


class ValueCounter:
    """Counts values one by one until there are too many, and notes whether each batch has each value once."""

    def __init__(self) -> None:
        self.counts: Counter[Any] | None = Counter()
        self.may_be_unique = True

    def add(self, values: pa.Array, counts: np.ndarray) -> None:
        self.may_be_unique = self.may_be_unique and bool((counts == 1).all())
        if self.counts is not None:
            if len(values) > MAX_COUNTED_VALUES:
                self.counts = None
                return
            self.counts.update(dict(zip(values.to_pylist(), counts.tolist(), strict=True)))
            if len(self.counts) > MAX_COUNTED_VALUES:
                self.counts = None
