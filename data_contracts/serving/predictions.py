"""A prediction as a client reads it: `{"label", "probabilities"}`, or for a regression `{"value"}`.

That of a multilabel task is `{"labels", "probabilities"}`, with all labels whose probability is at least a half.
That of an embedding is `{"embedding"}`, a vector. That of a tagging task is `{"tags", "probabilities", "entities",
"unread_words"}`, with a tag and its probability for each word, null for words that are cut off.

That of several outputs is `{"values": {"width": 1.2, "height": 3.4}}`.

That of several labels with classes is `{"classes": {"colour": "red"}, "probabilities": {"colour": {"red": 0.9}}}`.

Versions with conformal intervals add `lower` and `upper` to a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

Prediction = dict[str, Any]
_THRESHOLD = 0.5  # of the probability of a label of a multilabel task


def decide_labels(probabilities_NK: np.ndarray) -> np.ndarray:
    """The predicted labels of each row, int8 (N, K): 1 for each label whose probability is at least a half."""
    return (probabilities_NK >= _THRESHOLD).astype(np.int8)


def max_difference(
    first: Prediction, second: Prediction, deviations: Mapping[str, float] = MappingProxyType({})
) -> float:
    """The largest difference of a probability, 1 if the labels differ; the difference of the values; or 1 - cosine.

    The values of several outputs are divided by their `deviations`. Of sets of labels only probabilities count: one at
    the threshold may be on either side.
    """
    if "embedding" in first:
        return 1 - _cosine(np.asarray(first["embedding"]), np.asarray(second["embedding"]))
    if "tags" in first:
        return _tag_difference(first, second)
    if "values" in first:
        pairs = ((name, value, second["values"][name]) for name, value in first["values"].items())
        return max(abs(value - other) / deviations.get(name, 1.0) for name, value, other in pairs)
    if "value" in first:
        return abs(float(first["value"]) - float(second["value"]))
    if "classes" in first:
        return max(max_difference(_of_label(first, name), _of_label(second, name)) for name in first["classes"])
    if "label" in first and first["label"] != second["label"]:
        return 1.0
    first_shares, second_shares = first["probabilities"], second["probabilities"]
    return max(abs(share - second_shares[name]) for name, share in first_shares.items())


def _tag_difference(first: Prediction, second: Prediction) -> float:
    """The largest difference of a word's probability; 1 if a tag differs."""
    if first["tags"] != second["tags"]:
        return 1.0
    pairs = zip(first["probabilities"], second["probabilities"], strict=True)
    return max((abs(share - other) for share, other in pairs if share is not None), default=0.0)


def _cosine(first_W: np.ndarray, second_W: np.ndarray) -> float:
    """The cosine of two vectors; 1 for two vectors of zeros, and -1 for vectors of several lengths."""
    if first_W.shape != second_W.shape:
        return -1.0
    lengths = float(np.linalg.norm(first_W)) * float(np.linalg.norm(second_W))
    return float(first_W @ second_W) / lengths if lengths > 0 else float(np.array_equal(first_W, second_W))


def _of_label(prediction: Prediction, name: str) -> Prediction:
    return {"label": prediction["classes"][name], "probabilities": prediction["probabilities"][name]}


def flatten_classes(prediction: Prediction) -> Prediction:
    """The prediction of several labels with classes, with a column for each label and one for its probabilities."""
    shares = {f"{name}_probabilities": values for name, values in prediction["probabilities"].items()}
    return {**prediction["classes"], **shares}


def format_prediction(prediction: Prediction) -> str:
    if "embedding" in prediction:
        vector = prediction["embedding"]
        return f"[{', '.join(f'{value:.4g}' for value in vector[:3])}, …] with {len(vector)} values"
    if "tags" in prediction:
        entities = [f"{entity['text']} ({entity['type']})" for entity in prediction["entities"]]
        return ", ".join(entities) or " ".join(map(str, prediction["tags"]))
    if "value" in prediction:
        return f"{prediction['value']:g}"
    if "classes" in prediction:
        shares = prediction["probabilities"]
        texts = [f"{name} {label} ({shares[name][str(label)]:.4f})" for name, label in prediction["classes"].items()]
        return ", ".join(texts)
    if "values" in prediction:
        return ", ".join(f"{name} {value:g}" for name, value in prediction["values"].items())
    if "labels" in prediction:
        shares = prediction["probabilities"]
        texts = [f"{label} ({shares[str(label)]:.4f})" for label in prediction["labels"]]
        return ", ".join(texts) or f"no label (at most {max(shares.values()):.4f})"
    return f"{prediction['label']} with probability {max(prediction['probabilities'].values()):.4f}"
