"""Baselines: the uninformative rows that attributions compare with.

Shapes: B rows, N rows of a sample, C channels, H height, W width, T steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.training.config import AttributionBaseline


def make_baseline(
    x: torch.Tensor, layout: Layout, sample: torch.Tensor, kind: AttributionBaseline | None = None
) -> torch.Tensor:
    """A baseline for each row of x (B, ...): float32 of the same shape.

    Default: for tables and sequences the mean of the rows of `sample` (N, ...), with the most frequent category; for
    images 0, which is the mean pixel if the encoder standardises. Tokens always become padding; padded steps stay.

    Raises:
        RecipeInvalid: `blur` for rows that are not images.

    Source: Sturmfels, Lundberg & Lee 2020, "Visualizing the Impact of Feature Attribution Baselines".
    """
    kind = kind or ("zero" if layout.kind == "image" else "mean")
    if layout.kind == "tokens":
        return torch.zeros_like(x)
    if kind == "blur":
        if layout.kind != "image":
            raise RecipeInvalid(
                f"the baseline `blur` does not apply to rows of kind {layout.kind}",
                required="images, or the baseline `mean` or `zero`",
                where="the recipe's training.explain.baseline",
                remedy="leave the baseline out",
            )
        return _blur(x)
    baseline = torch.zeros_like(x) if kind == "zero" else _mean_row(layout, sample).expand_as(x).clone()
    if layout.is_padded:
        valid_BT1 = x[..., -1:]
        baseline = torch.cat([baseline[..., :-1] * valid_BT1, valid_BT1], dim=-1)
    return baseline


def _mean_row(layout: Layout, sample: torch.Tensor) -> torch.Tensor:
    """The mean row (1, ...), with equal steps in a sequence and the most frequent categories."""
    if layout.kind == "sequence":
        valid_NT1 = sample[..., -1:] if layout.is_padded else torch.ones_like(sample[..., :1])
        return ((sample * valid_NT1).sum((0, 1)) / valid_NT1.sum().clamp(min=1)).view(1, 1, -1)
    mean = sample.mean(0, keepdim=True)
    for position, _ in layout.categories:
        mean[:, position] = sample[:, position].mode().values
    return mean


def _blur(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Gaussian blur with a standard deviation of an eighth of the longer side; edges repeat outside."""
    channels, height, width = x_BCHW.shape[1:]
    sigma = max(height, width) / 8
    radius = min(round(2 * sigma), height - 1, width - 1)
    offsets = torch.arange(-radius, radius + 1, dtype=x_BCHW.dtype, device=x_BCHW.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    x = F.pad(x_BCHW, (radius, radius, radius, radius), mode="replicate")
    x = F.conv2d(x, kernel, groups=channels)
    return F.conv2d(x, kernel.transpose(2, 3), groups=channels)
