"""The outputs of a regression with several labels: their names, units and scores.

Shapes: N rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.records.intervals import Interval


class OutputUnits(Document):
    """A label is mean + deviation * z, where z has mean 0 and deviation 1 over the training rows that have it."""

    name: str
    mean: float
    deviation: float


class OutputScore(Document):
    """The errors of one output of a regression with several labels, in its units, on the test rows that have it."""

    name: str
    num_rows: int
    rmse: Interval
    mae: float
    r2: float | None  # None where all labels are equal


def standardise_outputs(outputs: Sequence[OutputUnits], values_NK: np.ndarray) -> np.ndarray:
    """Labels in their units as deviations from their means, float64 (N, K); a missing one stays nan."""
    means, deviations = _units(outputs)
    return (np.asarray(values_NK, np.float64) - means) / deviations


def restore_units(outputs: Sequence[OutputUnits], standard_NK: np.ndarray) -> np.ndarray:
    """The reverse of `standardise_outputs`."""
    means, deviations = _units(outputs)
    return means + deviations * np.asarray(standard_NK, np.float64)


def _units(outputs: Sequence[OutputUnits]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([output.mean for output in outputs]), np.array([output.deviation for output in outputs])
