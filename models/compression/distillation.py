"""A network that learns from what another one answers.

Shapes: B rows, K outputs.
"""

from __future__ import annotations

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
from bloomery.models.training.optimization.learner import Learner, RowLosses
from bloomery.models.training.optimization.loss import is_regression
from bloomery.models.training.optimization.mixed_precision import autocast


def create_distiller(teacher: nn.Module, distillation: Distillation) -> Callable[[nn.Module, Loop], Learner]:
    """A `Placement.parallelize` for the training loop: the student learns from labels and from `teacher`.

    The loss of a row is (1 - weight) times that of its label, and `weight` times how far the student is from the
    teacher: for classes T^2 times the Kullback-Leibler divergence of both at temperature T, for a regression the
    squared difference. Besides, `features` and `attention` times how far the student is from the teacher inside. The
    teacher, which is left as it is, sees each row as it was changed for the student.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2; Beyer et al. 2022, "Knowledge
    distillation: A good teacher is patient and consistent", section 3.1 (the same view for both).
    """
    teacher.eval()
    looks_inside = distillation.features > 0 or distillation.attention > 0

    def create_learner(student: nn.Module, loop: Loop) -> Learner:
        def learn(x: torch.Tensor, losses: RowLosses, divisor: float) -> torch.Tensor:
            with torch.no_grad(), autocast(loop, x.device), capture_activations(teacher, distillation) as taught:
                taught_BK = teacher(x)
            with autocast(loop, x.device), capture_activations(student, distillation) as mine:
                outputs_BK = student(x)
            loss = (1 - distillation.weight) * losses(outputs_BK, slice(None))
            loss = loss + distillation.weight * soft_target_loss(outputs_BK, taught_BK, distillation.temperature)
            if looks_inside:
                loss = loss + feature_matching_loss(mine, taught, valid_steps(student, x), distillation)
            (loss / divisor).backward()
            return loss.detach()

        return learn

    return create_learner


def soft_target_loss(outputs_BK: torch.Tensor, taught_BK: torch.Tensor, temperature: float) -> torch.Tensor:
    """How far the student's outputs are from the teacher's, added up over the rows; with one output, squared error."""
    if outputs_BK.shape[1] == 1:
        return F.mse_loss(outputs_BK.float(), taught_BK.float(), reduction="sum")
    student_BK = F.log_softmax(outputs_BK.float() / temperature, dim=1)
    teacher_BK = F.log_softmax(taught_BK.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(student_BK, teacher_BK, reduction="sum", log_target=True)


def add_unlabelled(labelled: Examples, x: torch.Tensor) -> Examples:
    """The labelled rows of a classification, and behind them those of `x` (B, ...), to which only the teacher has an
    answer. Keys are places.

    Raises:
        ValueError: the labels are figures, of which none can stand for none.
    """
    if is_regression(labelled.y):
        raise ValueError("rows without a label need a classification: a figure that stands for none is a figure too")
    y = labelled.y.new_full((len(x),), IGNORED_LABEL)
    return Examples(torch.cat([labelled.x, x]), torch.cat([labelled.y, y]), np.arange(len(labelled.x) + len(x)))
