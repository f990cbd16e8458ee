"""Decides more rows to be out of scope: a number is added to the logit of the class of rows that no other class suits.

Few training rows are out of scope, and they resemble those of new requests little, so a network seldom decides for
their class. Rows of the other classes have a margin, most of them a large one, so a shift detects many more of the
former and loses few of the latter.

Source: Larson et al. 2019, "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction" (a threshold
chosen on the validation split).

Shapes: N rows, K classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import nn


class ScopeClass(NamedTuple):
    """The index of the class out of scope, and the loss of accuracy of the other classes that its shift may cost."""

    label: int
    max_drop: float  # fraction of the validation rows of other classes


class ScopeScores(NamedTuple):
    """The accuracy of rows of all other classes, and the recall of the class out of scope; NaN without such rows."""

    in_scope: float
    recall: float


def choose_scope_shift(outputs_NK: np.ndarray, y: np.ndarray, label: int, max_drop: float) -> float:
    """The largest shift at which the accuracy of rows of the other classes drops by at most `max_drop`.

    It lies in the middle between the last margin that is lost and the first one that is kept.

    Args:
        y: class indices int64 (N,).
        label: the index of the class out of scope.
        max_drop: fraction of the rows of other classes.
    """
    others_NK = np.delete(outputs_NK, label, axis=1)
    is_other_N = y != label
    is_right_N = is_other_N & (outputs_NK.argmax(axis=1) == y)
    margins = np.sort((others_NK.max(axis=1) - outputs_NK[:, label])[is_right_N])
    if not len(margins):
        return 0.0
    num_lost = min(int(max_drop * is_other_N.sum() + 1e-9), len(margins) - 1)
    lost = margins[num_lost - 1] if num_lost else 0.0
    return float((lost + margins[num_lost]) / 2)


def shift_class(network: nn.Module, label: int, shift: float) -> None:
    """Adds `shift` to the logit of the class `label`, in the bias of the network's head.

    A head of a compressed network may consist of two thin layers, or wrap a layer.
    """
    assert isinstance(network.head, nn.Module)
    layers = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear) and layer.bias is not None]
    with torch.no_grad():
        layers[-1].bias[label] += shift


def measure_scope(outputs_NK: np.ndarray, y: np.ndarray, label: int) -> ScopeScores:
    """The scores of the decisions for the likeliest class."""
    is_right_N, is_other_N = outputs_NK.argmax(axis=1) == y, y != label
    in_scope, recall = (
        float(is_right_N[rows_N].mean()) if rows_N.any() else float("nan") for rows_N in (is_other_N, ~is_other_N)
    )
    return ScopeScores(in_scope, recall)
