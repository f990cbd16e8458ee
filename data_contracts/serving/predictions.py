"""A prediction as a client reads it: `{"label", "probabilities"}`, or for a regression `{"value"}`.

Versions with conformal intervals add `lower` and `upper` to a value.
"""

from __future__ import annotations

from typing import Any

Prediction = dict[str, Any]


def max_difference(first: Prediction, second: Prediction) -> float:
    """The largest difference of a probability, 1 if the labels differ; or the difference of the values."""
    if "value" in first:
        return abs(float(first["value"]) - float(second["value"]))
    if first["label"] != second["label"]:
        return 1.0
    first_shares, second_shares = first["probabilities"], second["probabilities"]
    return max(abs(share - second_shares[name]) for name, share in first_shares.items())


def format_prediction(prediction: Prediction) -> str:
    if "value" in prediction:
        return f"{prediction['value']:g}"
    return f"{prediction['label']} with probability {max(prediction['probabilities'].values()):.4f}"
