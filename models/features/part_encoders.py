"""Encoders of single parts of mixed rows, for what reads one part at a time: explanations, tokens, plots."""

from __future__ import annotations

from bloomery.models.features.config import Features
from bloomery.models.features.encoder import Encoder


def part_encoders(encoder: Encoder) -> tuple[Encoder, ...]:
    """For each part of a mixed row an encoder of its inputs alone, in order.

    They describe the values of their part; an optional part's flag is not among them.
    """
    encoders = []
    for numbers in encoder.features.part_inputs.values():
        inputs = tuple(encoder.features.inputs[number] for number in numbers)
        # Without validation, since a part that may be missing is no row by itself.
        features = Features.model_construct(**{**dict(encoder.features), "inputs": inputs})
        fitted = tuple(encoder.fitted[number] for number in numbers)
        encoders.append(
            Encoder.model_construct(features=features, fitted=fitted, classes=encoder.classes, units=encoder.units)
        )
    return tuple(encoders)
