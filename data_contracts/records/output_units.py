"""The outputs of a regression with several labels: their names, units and scores.

Shapes: N rows, K outputs; of labels with classes M outputs and K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, is_empty
from bloomery.data_contracts.records.intervals import Interval


class OutputUnits(Document):
    """A label is mean + deviation * z, where z has mean 0 and deviation 1 over the training rows that have it."""

    name: str
    mean: float
    deviation: float


class ClassOutput(Document):
    """One of several labels with classes: its column, and its classes in order."""

    name: str
    classes: tuple[int | str, ...]


class OutputScore(Document):
    """The errors of one output of a regression with several labels, in its units, on the test rows that have it."""

    name: str
    num_rows: int
    rmse: Interval
    mae: float
    r2: float | None  # None where all labels are equal


class ClassOutputScore(Document):
    """The scores of one of several labels with classes, on the test rows that have it.

    The paired comparison with fp32 covers `num_compared` held-out rows: only fp32 is right on `num_lost` of them, and
    only the candidate on `num_gained`.
    """

    name: str
    num_rows: int
    accuracy: Interval
    balanced_accuracy: float
    log_loss: float
    calibration_error: float
    num_compared: int = 0
    num_lost: int = 0
    num_gained: int = 0


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


def max_classes(outputs: Sequence[ClassOutput]) -> int:
    """The largest number of classes of an output; the logits of all outputs are padded to this width."""
    return max(len(output.classes) for output in outputs)


def class_mask(outputs: Sequence[ClassOutput]) -> np.ndarray:
    """Which of the logits of each output belong to a class: bool (M, K) of M outputs and at most K classes."""
    widths = np.array([len(output.classes) for output in outputs])
    return np.asarray(np.arange(max_classes(outputs)) < widths[:, None])


def format_classes(outputs: Sequence[ClassOutput], shares_MK: np.ndarray) -> dict[str, Any]:
    """The prediction of several labels with classes from their probabilities, 0 beyond the classes of a label."""
    best = shares_MK.argmax(axis=1).tolist()
    shares = zip(outputs, shares_MK.tolist(), strict=True)
    return {
        "classes": {output.name: output.classes[position] for output, position in zip(outputs, best, strict=True)},
        "probabilities": {
            output.name: dict(zip(map(str, output.classes), of_label, strict=False)) for output, of_label in shares
        },
    }


# Only records with several labels have these: empty ones are not written, so that other records keep their digests.
OptionalOutputs = Annotated[tuple[OutputUnits, ...], Field(exclude_if=is_empty)]
OptionalClassOutputs = Annotated[tuple[ClassOutput, ...], Field(exclude_if=is_empty)]
OptionalOutputScores = Annotated[tuple[OutputScore, ...], Field(exclude_if=is_empty)]
OptionalClassOutputScores = Annotated[tuple[ClassOutputScore, ...], Field(exclude_if=is_empty)]
