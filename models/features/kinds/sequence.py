"""Sequence inputs: steps in wide columns, or an array column of any length.

Shapes: B rows, T steps, F values per step, S real (not padded) steps of all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pyarrow.compute as pc

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import DataUnfit
from bloomery.models.features.config import Classes, Features
from bloomery.models.features.input_config import SequenceInput
from bloomery.models.features.statistics.arrow_arrays import (
    FLOAT32_MAX,
    Rows,
    combine_chunks,
    first_missing_column,
    list_elements,
    number_matrix,
    refuse_missing,
    require_values,
)
from bloomery.models.features.statistics.column_counts import NumericStatistics, numeric_statistics


class FittedSequence(Document):
    """A value becomes (value - centre) / divisor, with both per position within a step."""

    kind: Literal["sequence"]
    centre: tuple[float, ...]
    divisor: tuple[float, ...]


def partial_fit(source: SequenceInput, features: Features, rows: Rows) -> tuple[NumericStatistics, ...]:
    """The statistics of each position within a step, over all real steps that are not truncated."""
    if source.scale == "none":
        return ()
    steps_SF, _ = _read_steps(source, rows)
    return tuple(numeric_statistics(values) for values in steps_SF.T)


def fit(source: SequenceInput, statistics: tuple[NumericStatistics, ...], classes: Classes) -> FittedSequence:
    """Raises DataUnfit if there are no steps."""
    if not statistics:
        num_values = source.num_values
        return FittedSequence(kind="sequence", centre=(0.0,) * num_values, divisor=(1.0,) * num_values)
    pairs = list(_fit_scales(source, statistics))
    return FittedSequence(
        kind="sequence", centre=tuple(centre for centre, _ in pairs), divisor=tuple(divisor for _, divisor in pairs)
    )


def _fit_scales(source: SequenceInput, statistics: tuple[NumericStatistics, ...]) -> Iterator[tuple[float, float]]:
    for stats in statistics:
        require_values(", ".join(source.columns), stats.moments.count)
        if source.scale == "min_max" and stats.minimum is not None and stats.maximum is not None:
            distance = min(stats.maximum - stats.minimum, float(np.finfo(np.float64).max))
            yield stats.minimum, distance or 1.0
        else:
            yield stats.moments.mean(), stats.moments.deviation()


def shape(source: SequenceInput, fitted: FittedSequence) -> tuple[int, ...]:
    return source.input_shape


def transform_into(
    source: SequenceInput, fitted: FittedSequence, rows: Rows, out: np.ndarray, folds: np.ndarray | None
) -> None:
    """Fills `out`, all 0 before: float32 (B, T, F), or (B, T, F + 1) with 1 as the last value of real steps."""
    steps_SF, mask_BT = _read_steps(source, rows)
    with np.errstate(over="ignore"):
        steps_SF = (steps_SF - np.array(fitted.centre)) / np.array(fitted.divisor)
    out[mask_BT, : source.num_values] = np.clip(steps_SF, -FLOAT32_MAX, FLOAT32_MAX)
    if source.is_padded:
        out[..., -1] = mask_BT


def _read_steps(source: SequenceInput, rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The concatenated real steps of all rows, float64 (S, F), and the mask of real steps, bool (B, T).

    Raises:
        DataUnfit: a value is missing, or the length of an array is not a multiple of the step width.
    """
    num_steps, num_values = source.input_shape[0], source.num_values
    if source.column is None:
        values_FB = number_matrix(rows, source.columns)
        missing_FB = np.isnan(values_FB)
        if missing_FB.any():
            refuse_missing(first_missing_column(source.columns, missing_FB), True, source.kind)
        return values_FB.T.reshape(-1, num_values), np.ones((rows.num_rows, num_steps), bool)
    column = combine_chunks(rows[source.column])
    sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    uneven = np.flatnonzero(sizes % num_values)
    if uneven.size:
        raise DataUnfit(
            f"column {source.column} has an array of {sizes[uneven[0]]} values",
            required=f"a multiple of {num_values} values, the width of a step",
            where=f"column {source.column}, an input of kind sequence",
            remedy="correct the data at its source, or `width` in the recipe",
        )
    steps_SF = np.asarray(list_elements(column), np.float64).reshape(-1, num_values)
    lengths = sizes // num_values
    position = np.arange(len(steps_SF)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept_lengths = np.minimum(lengths, num_steps)
    return steps_SF[position < num_steps], np.arange(num_steps) < kept_lengths[:, None]
