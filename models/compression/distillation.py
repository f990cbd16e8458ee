"""Knowledge distillation: a student learns from the outputs of a teacher.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bloomery.models.compression.config import Distillation
from bloomery.models.compression.feature_matching import capture_activations, feature_matching_loss, valid_steps
from bloomery.models.features.labels import IGNORED_LABEL
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.optimization.contrastive_loss import is_embedding, similarity_loss
from bloomery.models.training.optimization.learner import Learner, RowLosses
from bloomery.models.training.optimization.loss import (
    is_multilabel,
    is_multioutput,
    is_multitask,
    is_regression,
    split_logits,
)
from bloomery.models.training.optimization.mixed_precision import autocast
from bloomery.models.training.optimization.tag_loss import is_tagging, tag_distance

# (student_BK, teacher_BK, temperature) -> the distance of the student's outputs to the teacher's, summed over the rows.
TargetDistance = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]


def create_distiller(
    teacher: nn.Module, distillation: Distillation, *, distance: TargetDistance | None = None
) -> Callable[[nn.Module, Loop], Learner]:
    """A `Placement.parallelize` for the training loop: the student learns from labels and from `teacher`.

    The loss of a row is (1 - weight) times that of its label, plus `weight` times the distance to the teacher's output:
    for classes T^2 times the Kullback-Leibler divergence at temperature T, for sets of labels the mean of that of each
    label, for several labels with classes their sum, for a regression the squared difference, for vectors the
    divergence of similarities, for tags that of tokens.
    `feature_weight` and `attention_weight` add the losses of feature_matching.py. The teacher sees each row with the
    student's augmentation, and does not change.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2; Beyer et al. 2022, "Knowledge
    distillation: A good teacher is patient and consistent", section 3.1 (the same view for both).
    """
    teacher.eval()
    distance = distance or soft_target_loss
    matches_features = distillation.feature_weight > 0 or distillation.attention_weight > 0

    def create_learner(student: nn.Module, loop: Loop) -> Learner:
        def learn(x: torch.Tensor, losses: RowLosses, divisor: float) -> torch.Tensor:
            with torch.no_grad(), autocast(loop, x.device), capture_activations(teacher, distillation) as targets:
                teacher_BK = teacher(x)
            with autocast(loop, x.device), capture_activations(student, distillation) as activations:
                student_BK = student(x)
            loss = (1 - distillation.weight) * losses(student_BK, slice(None))
            loss = loss + distillation.weight * distance(student_BK, teacher_BK, distillation.temperature)
            if matches_features:
                loss = loss + feature_matching_loss(activations, targets, valid_steps(student, x), distillation)
            (loss / divisor).backward()
            return loss.detach()

        return learn

    return create_learner


def soft_target_loss(student_BK: torch.Tensor, teacher_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """Distance of the student's outputs to the teacher's, summed over the rows; squared error for a single output."""
    if student_BK.shape[1] == 1:
        return F.mse_loss(student_BK.float(), teacher_BK.float(), reduction="sum")
    log_p_BK = F.log_softmax(student_BK.float() / temperature, dim=1)
    log_q_BK = F.log_softmax(teacher_BK.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p_BK, log_q_BK, reduction="sum", log_target=True)


def target_distance(y: torch.Tensor) -> TargetDistance:
    """The distance of outputs for rows with labels like `y`."""
    if is_embedding(y):
        return similarity_loss
    if is_tagging(y):
        return tag_distance
    if is_multioutput(y):
        return squared_distance
    if is_multitask(y):
        return functools.partial(_class_distance, num_labels=y.shape[1])
    return set_target_loss if is_multilabel(y) else soft_target_loss


def _class_distance(
    student_BK: torch.Tensor, teacher_BK: torch.Tensor, temperature: float, num_labels: int
) -> torch.Tensor:
    """The distance of the probabilities of the classes of several labels, summed over labels and rows."""
    student, teacher = (split_logits(outputs_BK, num_labels).flatten(0, 1) for outputs_BK in (student_BK, teacher_BK))
    return soft_target_loss(student, teacher, temperature)


def squared_distance(student_BK: torch.Tensor, teacher_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """The mean over outputs of the squared difference, summed over rows."""
    return F.mse_loss(student_BK.float(), teacher_BK.float(), reduction="sum") / student_BK.shape[1]


def set_target_loss(student_BK: torch.Tensor, teacher_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 times the mean over labels of the binary Kullback-Leibler divergence at temperature T, summed over rows."""
    logits_BK, targets_BK = student_BK.float() / temperature, teacher_BK.float() / temperature
    p_BK = targets_BK.sigmoid()
    cross = F.binary_cross_entropy_with_logits(logits_BK, p_BK, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(targets_BK, p_BK, reduction="sum")
    return temperature**2 * (cross - entropy) / student_BK.shape[1]


def add_unlabelled(labelled: Examples, x: torch.Tensor) -> Examples:
    """`labelled` rows of a classification, followed by the rows `x` (B, ...), which count for distillation only.

    Keys are positions.

    Raises:
        ValueError: the labels are regression targets, none of which can mark a missing label.
    """
    if is_regression(labelled.y) or is_multioutput(labelled.y):
        raise ValueError("rows without a label need a classification: a regression target cannot mark a missing label")
    y = labelled.y.new_full((len(x),), IGNORED_LABEL)
    return Examples(torch.cat([labelled.x, x]), torch.cat([labelled.y, y]), np.arange(len(labelled.x) + len(x)))
