"""Split conformal intervals: how far from a regression's prediction the true value lies, from rows held out.

Shapes: N rows.
"""

from __future__ import annotations

import math

import numpy as np

from bloomery.data_contracts.records.records import PredictionInterval
from bloomery.models.evaluation.metrics import proportion

LEVEL = 0.9


def conformal_half_width(residuals_N: np.ndarray, level: float = LEVEL) -> float | None:
    """The half width of an interval around a prediction that contains the true value with probability `level`.

    It is the ⌈(N + 1) level⌉-th smallest absolute residual: the guarantee holds for rows that are exchangeable with
    these, whatever the model and the distribution. None where there are too few rows.

    Source: Lei et al. 2018, "Distribution-Free Predictive Inference for Regression", algorithm 2.
    """
    rank = math.ceil((len(residuals_N) + 1) * level)
    if rank > len(residuals_N):
        return None
    return float(np.sort(np.abs(residuals_N))[rank - 1])


def measure_interval(calibration_N: np.ndarray, test_N: np.ndarray, level: float = LEVEL) -> PredictionInterval | None:
    """The interval by the residuals of calibration rows, and the share of test rows that it covers.

    None where there are too few calibration rows.
    """
    half_width = conformal_half_width(calibration_N, level)
    if half_width is None:
        return None
    num_covered = int(np.count_nonzero(np.abs(test_N) <= half_width))
    return PredictionInterval(
        level=level,
        half_width=half_width,
        num_rows=len(calibration_N),
        coverage=proportion(num_covered, len(test_N)),
    )
