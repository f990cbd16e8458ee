"""Contrastive losses, by which texts that belong together get close vectors.

Shapes: B rows, T tokens, W values of a vector.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bloomery.models.training.config import Loop

DEFAULT_TEMPERATURE = 0.05


def is_embedding(y: torch.Tensor) -> bool:
    """Whether labels are texts: their tokens, int32 (B, T)."""
    return y.dtype == torch.int32


def join_pairs(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The rows of queries x (B, T), followed by those of their positives y: float32 (2B, T), as networks read them."""
    return torch.cat([x, y.to(x.dtype)])


def pair_tokens(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The tokens of queries x (B, T) and their positives y as labels of a batch: int32 (2B, T)."""
    return torch.cat([x.to(y.dtype), y])


def contrastive_loss(outputs_2BW: torch.Tensor, tokens_2BT: torch.Tensor, loop: Loop) -> torch.Tensor:
    """The sum over queries of the cross entropy of their positives among all positives of the batch (InfoNCE).

    The logits are cosines, divided by the temperature. Texts that are right for a query are no negatives: its other
    positives, those equal to its own, and the query itself. With `matryoshka`, it is the mean over the complete vectors
    and their first values.

    Args:
        outputs_2BW: the vectors of the rows of `join_pairs`.
        tokens_2BT: their `pair_tokens`, before augmentation.

    Source: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"; Kusupati et al.
    2022, "Matryoshka Representation Learning".
    """
    queries_BW, positives_BW = outputs_2BW.float().chunk(2)
    x_BT, y_BT = tokens_2BT.chunk(2)
    is_right_BB = _equal_rows(y_BT, y_BT) | _equal_rows(x_BT, x_BT) | _equal_rows(x_BT, y_BT)
    is_right_BB.fill_diagonal_(False)
    width = outputs_2BW.shape[1]
    lengths = sorted({width, *(length for length in loop.matryoshka or () if length < width)})
    temperature = DEFAULT_TEMPERATURE if loop.temperature is None else loop.temperature
    targets_B = torch.arange(len(queries_BW), device=outputs_2BW.device)
    losses = []
    for length in lengths:
        vectors = (F.normalize(vectors_BW[:, :length], dim=1) for vectors_BW in (queries_BW, positives_BW))
        queries_BL, positives_BL = vectors
        logits_BB = (queries_BL @ positives_BL.T / temperature).masked_fill(is_right_BB, float("-inf"))
        losses.append(F.cross_entropy(logits_BB, targets_B, reduction="sum"))
    return torch.stack(losses).mean()


def _equal_rows(first_BT: torch.Tensor, second_BT: torch.Tensor) -> torch.Tensor:
    """Whether each row of the first equals each of the second: bool (B, B)."""
    return (first_BT[:, None, :] == second_BT[None, :, :]).all(dim=2)


def similarity_loss(student_BW: torch.Tensor, teacher_BW: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 times the Kullback-Leibler divergence of the similarities of each row to the others, summed over the rows.

    The vectors of student and teacher may have different lengths.

    Source: Fang et al. 2021, "SEED: Self-supervised Distillation For Visual Representation".
    """
    student_BB, teacher_BB = (
        _similarities(vectors_BW, temperature * DEFAULT_TEMPERATURE) for vectors_BW in (student_BW, teacher_BW)
    )
    return temperature**2 * F.kl_div(student_BB, teacher_BB, reduction="sum", log_target=True)


def _similarities(vectors_BW: torch.Tensor, temperature: float) -> torch.Tensor:
    """The log probabilities (B, B-1) of the other rows by their similarity to each row."""
    unit_BW = F.normalize(vectors_BW.float(), dim=1)
    num_rows = len(unit_BW)
    is_other = ~torch.eye(num_rows, dtype=torch.bool, device=unit_BW.device)
    cosines = (unit_BW @ unit_BW.T)[is_other].view(num_rows, num_rows - 1)
    return F.log_softmax(cosines / temperature, dim=1)
