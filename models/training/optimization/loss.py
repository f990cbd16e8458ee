"""Training losses, and the scores for humans.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from bloomery.models.training.config import Loop
from bloomery.models.training.optimization.contrastive_loss import contrastive_loss, is_embedding
from bloomery.models.training.optimization.tag_loss import build_tag_loss, is_tagging, tag_sums

BatchLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def is_regression(y: torch.Tensor) -> bool:
    """Whether labels are standardised values (float32) instead of class indices (int64) or sets of labels."""
    return y.is_floating_point() and not is_multilabel(y) and not is_multioutput(y)


def is_multilabel(y: torch.Tensor) -> bool:
    """Whether labels are sets: 0 and 1 for each label (B, K)."""
    return y.dim() == 2 and y.is_floating_point() and not is_multioutput(y)


def is_multitask(y: torch.Tensor) -> bool:
    """Whether labels are class indices of several outputs (B, M), negative where one is missing."""
    return y.dim() == 2 and y.dtype == torch.int64


def is_multioutput(y: torch.Tensor) -> bool:
    """Whether labels are standardised values of several outputs (B, K): float64, with nan for a missing one."""
    return y.dtype == torch.float64


def build_loss(loop: Loop, train_y: torch.Tensor, quantile: float | None = None) -> BatchLoss:
    """Builds (outputs_BK, y_B) -> sum of the rows' losses: cross entropy in nats, or squared or Huber error.

    The loss of a set of labels is the mean of the binary cross entropies of its labels. That of several outputs is the
    mean over all outputs, in which missing labels have no error; of classes it is the sum of the cross entropies. Of an
    embedding it is the contrastive loss, whose outputs are those of queries and positives, and whose labels are their
    `pair_tokens`. Of tags it is the mean cross entropy of the words, times the rows.

    With a `quantile`, a regression learns it by the quantile (pinball) loss, whatever `loop.loss` is.

    Source: Koenker & Bassett 1978, "Regression Quantiles".
    """
    if is_embedding(train_y):
        return lambda outputs_BK, y_B: contrastive_loss(outputs_BK, y_B, loop)
    if is_regression(train_y) and quantile is not None:
        return lambda outputs_BK, y_B: _quantile_loss(y_B - outputs_BK.squeeze(1).float(), quantile)
    if is_regression(train_y):
        measure = F.mse_loss if loop.loss == "squared" else F.huber_loss
        return lambda outputs_BK, y_B: measure(outputs_BK.squeeze(1).float(), y_B, reduction="sum")

    if is_multilabel(train_y):
        return sum_binary_entropies
    if is_multitask(train_y):
        return _build_class_loss(loop, train_y)
    if is_multioutput(train_y):
        return lambda outputs_BK, y_BK: _sum_output_errors(outputs_BK, y_BK, loop.loss)

    @functools.cache
    def weights(num_classes: int, device: torch.device) -> torch.Tensor | None:
        return class_weights(train_y, num_classes).to(device) if loop.class_weights == "balanced" else None

    if is_tagging(train_y):
        return build_tag_loss(loop, weights)

    def cross_entropy(outputs_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
        weight_K = weights(outputs_BK.shape[1], outputs_BK.device)
        return F.cross_entropy(
            outputs_BK.float(), y_B, weight=weight_K, label_smoothing=loop.label_smoothing, reduction="sum"
        )

    return cross_entropy


def _quantile_loss(errors_B: torch.Tensor, quantile: float) -> torch.Tensor:
    return torch.maximum(quantile * errors_B, (quantile - 1) * errors_B).sum()


def sum_binary_entropies(outputs_BK: torch.Tensor, y_BK: torch.Tensor) -> torch.Tensor:
    """The sum over rows of the mean binary cross entropy of the row's labels, whose probabilities are sigmoids."""
    return F.binary_cross_entropy_with_logits(outputs_BK.float(), y_BK, reduction="sum") / outputs_BK.shape[1]


def _sum_output_errors(outputs_BK: torch.Tensor, y_BK: torch.Tensor, loss: str = "squared") -> torch.Tensor:
    """The sum over rows of the mean squared or Huber error of the outputs; that of a missing label is 0."""
    is_known_BK = ~torch.isnan(y_BK)
    outputs_BK = outputs_BK.float()
    # Without a label, the target is the output itself: then value and gradient are 0, and never nan.
    targets_BK = torch.where(is_known_BK, y_BK.float(), outputs_BK.detach())
    measure = F.mse_loss if loss == "squared" else F.huber_loss
    errors_BK = measure(outputs_BK, targets_BK, reduction="none")
    return (errors_BK * is_known_BK).sum() / outputs_BK.shape[1]


def split_logits(outputs_BK: torch.Tensor, num_labels: int) -> torch.Tensor:
    """The logits of each of several labels with classes, float32 (B, M, K), from outputs (B, M * K)."""
    return outputs_BK.float().unflatten(1, (num_labels, -1))


def _build_class_loss(loop: Loop, train_y: torch.Tensor) -> BatchLoss:
    """Builds the loss of several labels with classes, in which the classes of each label are balanced by themselves."""

    @functools.cache
    def weights(num_classes: int, device: torch.device) -> torch.Tensor | None:
        if loop.class_weights != "balanced":
            return None
        return torch.stack([class_weights(y_N, num_classes) for y_N in train_y.T]).to(device)

    def sum_entropies(outputs_BK: torch.Tensor, y_BM: torch.Tensor) -> torch.Tensor:
        return _sum_class_entropies(outputs_BK, y_BM, weights(outputs_BK.shape[1] // y_BM.shape[1], outputs_BK.device))

    return sum_entropies


def _sum_class_entropies(
    outputs_BK: torch.Tensor, y_BM: torch.Tensor, weights_MK: torch.Tensor | None = None
) -> torch.Tensor:
    """The sum over rows and labels of the cross entropies; that of a missing label is 0."""
    logits_BMK = split_logits(outputs_BK, y_BM.shape[1])
    entropies_BM = F.cross_entropy(logits_BMK.flatten(0, 1), y_BM.flatten(), reduction="none").view_as(y_BM)
    if weights_MK is not None:  # 0 beyond the classes of a label
        entropies_BM = entropies_BM * weights_MK.gather(1, y_BM.clamp(min=0).T).T
    return entropies_BM.sum()


def class_weights(y: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Weights that balance the classes, with mean 1 over the rows; 0 for a class without rows.

    Rows without a label (negative y) are ignored.

    Source: King & Zeng 2001, "Logistic Regression in Rare Events Data", section 4.1.
    """
    y = y[y >= 0].long()
    counts_K = torch.bincount(y, minlength=num_classes).float()
    num_present = (counts_K > 0).sum()
    return torch.where(counts_K > 0, len(y) / (num_present * counts_K.clamp(min=1)), 0.0)


def loss_and_metric_sums(outputs_BK: torch.Tensor, y_B: torch.Tensor) -> torch.Tensor:
    """float64 (3,): sum of unweighted losses, sum of the metric behind the score, number of rows, or of tags."""
    if is_tagging(y_B):
        return tag_sums(outputs_BK, y_B)
    if is_regression(y_B):
        loss = metric = F.mse_loss(outputs_BK.squeeze(1).float(), y_B, reduction="sum")
    elif is_multioutput(y_B):
        loss = metric = _sum_output_errors(outputs_BK, y_B)
    elif is_multitask(y_B):
        loss = _sum_class_entropies(outputs_BK, y_B)
        is_right_BM = split_logits(outputs_BK, y_B.shape[1]).argmax(2) == y_B
        metric = (is_right_BM | (y_B < 0)).all(dim=1).sum()
    elif is_multilabel(y_B):
        loss = sum_binary_entropies(outputs_BK, y_B)
        metric = ((outputs_BK >= 0) == (y_B > 0)).all(dim=1).sum()
    else:
        loss = F.cross_entropy(outputs_BK.float(), y_B, reduction="sum")
        metric = (outputs_BK.argmax(1) == y_B).sum()
    return torch.stack([loss.double(), metric.double(), torch.tensor(float(len(y_B)), dtype=torch.float64)])


def loss_and_score(sums: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Mean loss, and accuracy from 0 to 1 or standardised RMSE, from `loss_and_metric_sums` of all rows."""
    loss, score = (sums[:2] / sums[2]).tolist()
    return loss, math.sqrt(score) if is_regression(y) or is_multioutput(y) else score


def score_outputs(outputs_BK: np.ndarray, y_B: torch.Tensor) -> float:
    """Accuracy from 0 to 1, or standardised RMSE, of outputs for rows with labels `y_B`."""
    return loss_and_score(loss_and_metric_sums(torch.from_numpy(outputs_BK), y_B), y_B)[1]
