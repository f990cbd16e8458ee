"""What a value is compared with when it is asked how much it matters.

Shapes: B rows, N rows of a sample, C channels, H height, W width, T steps, F values of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.training.config import AttributionBaseline


def make_baseline(
    x: torch.Tensor, layout: Layout, sample: torch.Tensor, how: AttributionBaseline | None = None
) -> torch.Tensor:
    """A row that says nothing, for each row of x (B, ...): float32 of the same shape.

    Left out, `how` is the mean of the rows of `sample` (N, ...) for tables and sequences, of which categories take the
    most frequent one, and 0 for images, which is the mean pixel where the encoder standardises. Tokens always become
    padding, and a padded step stays padded.

    Raises:
        RecipeInvalid: rows that are no images cannot be blurred.

    Source: Sturmfels, Lundberg & Lee 2020, "Visualizing the Impact of Feature Attribution Baselines".
    """
    chosen = how or ("zero" if layout.kind == "image" else "mean")
    if layout.kind == "tokens":
        return torch.zeros_like(x)
    if chosen == "blur":
        if layout.kind != "image":
            raise RecipeInvalid(
                f"the baseline of rows of kind {layout.kind} is to be a blurred row",
                required="images, or the baseline `mean` or `zero`",
                where="the recipe's training.explain.baseline",
                remedy="leave the baseline out",
            )
        return _blurred(x)
    still = torch.zeros_like(x) if chosen == "zero" else _mean(layout, sample).expand_as(x).clone()
    if layout.is_padded:
        there_BT = x[..., -1:]
        still = torch.cat([still[..., :-1] * there_BT, there_BT], dim=-1)
    return still


def _mean(layout: Layout, sample: torch.Tensor) -> torch.Tensor:
    """The mean row (1, ...). All steps of a sequence are alike; a category is the most frequent one."""
    if layout.kind == "sequence":
        there_NT1 = sample[..., -1:] if layout.is_padded else torch.ones_like(sample[..., :1])
        return ((sample * there_NT1).sum((0, 1)) / there_NT1.sum().clamp(min=1)).view(1, 1, -1)
    mean = sample.mean(0, keepdim=True)
    for position, _ in layout.categories:
        mean[:, position] = sample[:, position].mode().values
    return mean


def _blurred(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Images under a Gaussian of an eighth of their longer side, in pixels; edges repeat outside."""
    channels, height, width = x_BCHW.shape[1:]
    sigma = max(height, width) / 8
    reach = min(round(2 * sigma), height - 1, width - 1)
    offsets = torch.arange(-reach, reach + 1, dtype=x_BCHW.dtype, device=x_BCHW.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    x = F.pad(x_BCHW, (reach, reach, reach, reach), mode="replicate")
    x = F.conv2d(x, kernel, groups=channels)
    return F.conv2d(x, kernel.transpose(2, 3), groups=channels)
