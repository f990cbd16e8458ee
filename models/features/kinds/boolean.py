"""Boolean inputs, encoded as 1 and 0.

Shapes: B rows, C columns of one input.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import BooleanInput
from bloomery.models.features.statistics.arrow_arrays import Rows, first_missing_column, number_matrix, refuse_missing
from bloomery.models.features.statistics.column_counts import NumericStatistics


class FittedBooleans(Document):
    """Booleans have no fitted state."""

    kind: Literal["boolean"]


def partial_fit(source: BooleanInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    return ()


def fit(source: BooleanInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedBooleans:
    return FittedBooleans(kind="boolean")


def shape(source: BooleanInput, fitted: FittedBooleans) -> tuple[int, ...]:
    return (len(source.columns) * (2 if source.indicator else 1),)


def transform_into(
    source: BooleanInput, fitted: FittedBooleans, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out`, all 0 before: float32 (B, C), or (B, 2 C) with indicators last."""
    values_CB = number_matrix(rows, source.columns)
    missing_CB = np.isnan(values_CB)
    if missing_CB.any():
        refuse_missing(first_missing_column(source.columns, missing_CB), source.missing == "refuse", source.kind)
        np.copyto(values_CB, float(source.missing is True), where=missing_CB)
        if source.indicator:
            out[:, len(source.columns) :] = missing_CB.T
    out[:, : len(source.columns)] = values_CB.T
