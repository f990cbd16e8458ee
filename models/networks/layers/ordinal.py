"""The outputs of networks for classes that have an order.

Shapes: K classes.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def class_log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """The logarithms of the probabilities of K ordered classes (..., K), from K - 1 logits (..., K - 1).

    Logit k gives the probability that the class is beyond k, if it is at least k. The probability to be beyond k is
    the product of the first k of them, so it falls with k whatever the logits are, also rounded ones. Cross entropy
    of these outputs is the loss of CORN, so each logit learns from the rows of class k and beyond alone.

    Source: Shi, Cao & Raschka 2021, "Deep Neural Networks for Rank-Consistent Ordinal Regression Based On Conditional
    Probabilities"; the continuation ratio model of Fienberg 1980, "The Analysis of Cross-Classified Categorical Data".
    """
    logits = logits.float()
    # The logarithm of a sigmoid is exported as such, and underflows; softplus does not.
    go_on, stop = -F.softplus(-logits), -F.softplus(logits)
    return F.pad(torch.cumsum(go_on, dim=-1), (1, 0)) + F.pad(stop, (0, 1))


def convert_outputs(network: nn.Module, args: Any, logits: torch.Tensor) -> torch.Tensor:
    """A forward hook that gives the K outputs of a network with K - 1 logits."""
    return class_log_probabilities(logits)
