"""Intervals: around measured values, and around the predictions of a regression."""

from __future__ import annotations

from bloomery.data_contracts.documents.documents import Document


class Interval(Document):
    """A 95% interval around `value`."""

    value: float
    low: float
    high: float


class PredictionInterval(Document):
    """An interval around each prediction of a regression that is to contain the true value."""

    level: float  # the share of true values that it is to contain
    half_width: float  # in the units of the label, the same for all rows
    num_rows: int  # of the validation split, whose errors determine the width
    coverage: Interval  # the share of the test rows whose true value it contains
