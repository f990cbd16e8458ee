"""The loss of tagged words. Labels are positions of tags at the first token of each word, int16, below 0 elsewhere.

Shapes: B rows, T tokens, S tokens with outputs, which are all but common padding, K tags.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from bloomery.models.features.labels import IGNORED_LABEL
from bloomery.models.training.config import Loop


def is_tagging(y: torch.Tensor) -> bool:
    """Whether labels are tags of words, int16 (B, T)."""
    return y.dtype == torch.int16


def build_tag_loss(
    loop: Loop, balance: Callable[[int, torch.device], torch.Tensor | None]
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Builds (outputs_BSK, y_BT) -> the mean cross entropy of the words of a batch, times its rows.

    So words count alike, whatever the length of their sentence is.

    Args:
        balance: returns the weights of K classes on a device.
    """

    def compute(outputs_BSK: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:
        logits_WK, tags_W = select_words(outputs_BSK, y_BT)
        weight_K = balance(logits_WK.shape[1], logits_WK.device)
        sum_of_words = F.cross_entropy(
            logits_WK, tags_W, weight=weight_K, label_smoothing=loop.label_smoothing, reduction="sum"
        )
        return sum_of_words * (len(y_BT) / max(len(tags_W), 1))

    return compute


def select_words(outputs_BSK: torch.Tensor, y_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs float32 (W, K) and the positions of the tags int64 (W,) of all W words of the rows."""
    is_word_BT = y_BT != IGNORED_LABEL
    return outputs_BSK[is_word_BT[:, : outputs_BSK.shape[1]]].float(), y_BT[is_word_BT].long()


def tag_sums(outputs_BSK: torch.Tensor, y_BT: torch.Tensor) -> torch.Tensor:
    """float64 (3,): sum of the words' cross entropies, number of right tags, number of words."""
    logits_WK, tags_W = select_words(outputs_BSK, y_BT)
    loss = F.cross_entropy(logits_WK, tags_W, reduction="sum").double()
    num_right = (logits_WK.argmax(1) == tags_W).sum().double()
    return torch.stack([loss, num_right, torch.tensor(float(len(tags_W)), dtype=torch.float64, device=loss.device)])


def tag_distance(student_BSK: torch.Tensor, teacher_BTK: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 times the mean Kullback-Leibler divergence of the tokens of a batch at temperature T, times its rows.

    The outputs for padding are 0, and their divergence too.
    """
    teacher_BSK = teacher_BTK[:, : student_BSK.shape[1]].float()
    num_tokens = (teacher_BSK != 0).any(2).sum().clamp(min=1)
    log_p, log_q = (F.log_softmax(values / temperature, dim=2) for values in (student_BSK.float(), teacher_BSK))
    divergence = F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    return temperature**2 * divergence * len(teacher_BSK) / num_tokens
