"""Steps of sequences: their embedding, and the treatment of padding.

Shapes: B rows, T steps, F values of a step, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout


class StepEmbedding(nn.Module):
    """x as in the layout -> x_BTW float32 and mask_BT bool, which is True for real (not padded) steps.

    Tokens become rows of `embedding`; a spectrogram (1, F, T) is read along its time axis. A row of only padding counts
    as one real step, so that nothing is divided by 0.
    """

    def __init__(self, layout: Layout, width: int | None) -> None:
        """`width` is that of the embedding, or of a linear map of each step; None keeps the steps as they are."""
        super().__init__()
        self._kind, self._is_padded = layout.kind, layout.is_padded
        self.embedding: nn.Embedding | None = None
        self.project: nn.Linear | None = None
        match layout.kind:
            case "tokens":
                if width is None or layout.num_tokens is None:
                    raise ValueError("tokens need a width and a number of tokens")
                self.embedding = nn.Embedding(layout.num_tokens, width, padding_idx=0)
                self._last_token = layout.num_tokens - 1
                self.width = width
            case "sequence":
                self.width = layout.shape[1] - layout.is_padded
            case "image" if layout.shape[0] == 1:
                self.width = layout.shape[1]
            case _:
                raise RecipeInvalid(
                    f"rows of kind {layout.kind} and shape {list(layout.shape)} are not sequences",
                    required="tokens, a sequence, or a spectrogram of one channel",
                    where="the recipe's model",
                    remedy="use a network for such rows, for example a cnn for images or an mlp for flat rows",
                )
        if layout.kind != "tokens" and width is not None:
            self.project = nn.Linear(self.width, width)
            self.width = width

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mask_BT = self.step_mask(x)
        if self.embedding is not None:
            x_BTW = self.embedding(x.long().clamp(0, self._last_token))
        elif self._kind == "image":
            x_BTW = x.flatten(1, 2).transpose(1, 2)
        elif self._is_padded:
            x_BTW = x[..., :-1].masked_fill(x[..., -1:] <= 0.5, 0.0)
        else:
            x_BTW = x
        return (x_BTW if self.project is None else self.project(x_BTW)), mask_BT

    def step_mask(self, x: torch.Tensor) -> torch.Tensor:
        """mask_BT bool: True for real steps, and for the first step of a row of only padding."""
        if self._kind == "tokens":
            mask_BT, has_none_B1 = x >= 1, x.amax(1, keepdim=True) < 1
        elif self._is_padded:
            flag_BT = x[..., -1]
            mask_BT, has_none_B1 = flag_BT > 0.5, flag_BT.amax(1, keepdim=True) <= 0.5
        else:
            return torch.ones_like(x[:, 0, 0] if self._kind == "image" else x[..., 0], dtype=torch.bool)
        is_first_T = torch.arange(x.shape[1], device=x.device) == 0
        return mask_BT | (is_first_T & has_none_B1)


def sequence_length(layout: Layout) -> int:
    """The number of steps of one row."""
    return layout.shape[-1] if layout.kind in ("tokens", "image") else layout.shape[0]


def require_tokens(layout: Layout, problem: str, remedy: str) -> int:
    """The number of tokens of the vocabulary, for a network that looks up each token.

    Raises:
        RecipeInvalid: the rows have no tokens. The message begins with `problem`.
    """
    if layout.kind != "tokens" or layout.num_tokens is None:
        raise RecipeInvalid(
            f"{problem}, but rows are of kind {layout.kind}",
            required="text",
            where="the recipe's model",
            remedy=remedy,
        )
    return layout.num_tokens


def trim_common_padding(x: torch.Tensor) -> torch.Tensor:
    """Removes trailing steps that are padding in every row, from tokens (B, T) or padded steps (B, T, F)."""
    mask_BT = x >= 1 if x.dim() == 2 else x[..., -1] > 0.5
    at_T = torch.arange(1, mask_BT.shape[1] + 1, device=x.device)
    return x[:, : max(int((mask_BT.any(0) * at_T).max()), 1)]


EACH_STEP = "each_step"  # of `pool`: no pooling, where a network has outputs for each step


def mask_steps(outputs: torch.Tensor, mask_BT: torch.Tensor, pooling: str) -> torch.Tensor:
    """Outputs (B, T, K) of each step with 0 for padding; those of pooled rows (B, K) are unchanged."""
    return outputs * mask_BT.unsqueeze(-1) if pooling == EACH_STEP else outputs


def pad_steps(outputs: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Outputs (B, T, K) of each step with 0 for the last steps that are missing; those of rows (B, K) are unchanged."""
    return F.pad(outputs, (0, 0, 0, num_steps - outputs.shape[1])) if outputs.dim() == 3 else outputs


def pool(h_BTW: torch.Tensor, mask_BT: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector per row (B, W) from its real steps, of which each row has one: first, last, mean or max.

    All vectors (B, T, W) for `EACH_STEP`.
    """
    if pooling == EACH_STEP:
        return h_BTW
    if pooling == "first":
        return h_BTW[:, 0]
    if pooling == "last":
        last_B1W = (mask_BT.sum(1) - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, h_BTW.shape[-1])
        return h_BTW.gather(1, last_B1W)[:, 0]
    if pooling == "max":
        return h_BTW.masked_fill(~mask_BT.unsqueeze(-1), torch.finfo(h_BTW.dtype).min).amax(1)
    mask_BT1 = mask_BT.unsqueeze(-1).to(h_BTW.dtype)
    return (h_BTW * mask_BT1).sum(1) / mask_BT1.sum(1)


def reverse_steps(x_BTW: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """Reverses the real steps and keeps padding at the end; its own inverse."""
    num_B1 = mask_BT.sum(1, keepdim=True)
    at_1T = torch.arange(x_BTW.shape[1], device=x_BTW.device).unsqueeze(0)
    source_BT = torch.where(at_1T < num_B1, num_B1 - 1 - at_1T, at_1T)
    return x_BTW.gather(1, source_BT.unsqueeze(-1).expand_as(x_BTW))
