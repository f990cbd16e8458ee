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
    images 0, which is the mean pixel if the encoder standardises. Tokens always become padding; padded steps stay. In
    mixed rows each part has the baseline of its kind, and a missing part stays missing.

    Raises:
        RecipeInvalid: `blur` for rows that are not images.

    Source: Sturmfels, Lundberg & Lee 2020, "Visualizing the Impact of Feature Attribution Baselines".
    """
    if layout.parts:
        return _join_baselines(x, layout, sample, kind)
    kind = kind or ("zero" if layout.kind == "image" else "mean")
    if layout.kind == "tokens":
        return torch.zeros_like(x)
    if kind == "blur":
        if layout.kind != "image":
            raise _no_blur(f"rows of kind {layout.kind}")
        return _blur(x)
    baseline = torch.zeros_like(x) if kind == "zero" else _mean_row(layout, sample).expand_as(x).clone()
    if layout.is_padded:
        valid_BT1 = x[..., -1:]
        baseline = torch.cat([baseline[..., :-1] * valid_BT1, valid_BT1], dim=-1)
    return baseline


def _join_baselines(
    x_BF: torch.Tensor, layout: Layout, sample_NF: torch.Tensor, kind: AttributionBaseline | None
) -> torch.Tensor:
    if kind == "blur" and all(part.layout.kind != "image" for part in layout.parts):
        raise _no_blur("rows without an image")
    baseline_BF = x_BF.clone()
    for part, start, stop in layout.part_slices:
        shape = (-1, *part.layout.shape)
        present_NF = sample_NF[sample_NF[:, stop] > 0.5] if part.is_optional else sample_NF
        kind_of_part = None if kind == "blur" and part.layout.kind != "image" else kind
        if not len(present_NF):  # no sampled row has the part
            kind_of_part, present_NF = "zero", sample_NF
        values = make_baseline(
            x_BF[:, start:stop].reshape(shape), part.layout, present_NF[:, start:stop].reshape(shape), kind_of_part
        ).flatten(1)
        baseline_BF[:, start:stop] = values * x_BF[:, stop : stop + 1] if part.is_optional else values
    return baseline_BF


def _no_blur(rows: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"the baseline `blur` does not apply to {rows}",
        required="images, or the baseline `mean` or `zero`",
        where="the recipe's training.explain.baseline",
        remedy="leave the baseline out",
    )


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
