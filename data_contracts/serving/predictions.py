"""A prediction as a client reads it: `{"label", "probabilities"}`, or for a regression `{"value"}`."""

from __future__ import annotations

from typing import Any

Prediction = dict[str, Any]


def max_difference(one: Prediction, other: Prediction) -> float:
    """How far two predictions are apart: by a probability at most, 1 if the labels differ, or by the values."""
    if "value" in one:
        return abs(float(one["value"]) - float(other["value"]))
    if one["label"] != other["label"]:
        return 1.0
    ours, theirs = one["probabilities"], other["probabilities"]
    return max(abs(share - theirs[name]) for name, share in ours.items())


def format_prediction(prediction: Prediction) -> str:
    if "value" in prediction:
        return f"{prediction['value']:g}"
    return f"{prediction['label']} with probability {max(prediction['probabilities'].values()):.4f}"
