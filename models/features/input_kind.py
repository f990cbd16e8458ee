"""The interface of the modules in `kinds`: what each kind of input must define.

Shapes: B rows.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np

from bloomery.models.features.config import Classes, Features
from bloomery.models.features.statistics.arrow_arrays import Rows
from bloomery.models.features.statistics.column_counts import ColumnStatistics

InputT = TypeVar("InputT", contravariant=True)  # the input as a recipe states it
FittedT = TypeVar("FittedT")
StatisticsT = TypeVar("StatisticsT", bound=ColumnStatistics)


class InputKind(Protocol[InputT, FittedT, StatisticsT]):
    """One kind of input. A module with these four functions is an instance."""

    def partial_fit(self, source: InputT, features: Features, rows: Rows) -> tuple[StatisticsT, ...]:
        """The statistics of some rows, which can be added to those of other rows."""

    def fit(self, source: InputT, statistics: tuple[StatisticsT, ...], classes: Classes) -> FittedT:
        """The fitted state, from the statistics of the training split. Raises DataUnfit if they do not suffice."""

    def shape(self, source: InputT, fitted: FittedT) -> tuple[int, ...]:
        """The shape of one encoded row."""

    def transform_into(
        self, source: InputT, fitted: FittedT, rows: Rows, out: np.ndarray, folds: np.ndarray | None
    ) -> None:
        """Fills `out` float32 (B, *shape), which is all 0 before.

        `folds` uint64 (B,) are hashes of the keys, given for rows of the training split only.
        """
