"""Random changes to training batches that preserve the labels.

Shapes: B rows, C channels, H height, W width, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from bloomery.data_contracts.records.tensor_layout import PartSlice
from bloomery.models.training.config import Augment


class MixupBatch(NamedTuple):
    """A mixed batch: row i has the label y[i] with weight `share`, and other_y[i] with weight 1 - `share`."""

    x: torch.Tensor
    y: torch.Tensor
    other_y: torch.Tensor
    share: float


def batch_generator(seed: int, epoch: int, batch: int) -> torch.Generator:
    """A generator that depends on these three numbers only, so that a resumed run draws the same numbers."""
    # Three primes separate the seeds of adjacent epochs and batches.
    return torch.Generator().manual_seed((seed * 1_000_003 + epoch * 7_919 + batch * 104_729) % 2**63)


def augment_batch(x: torch.Tensor, augment: Augment, random: torch.Generator) -> torch.Tensor:
    """Augments images (B, C, H, W) or tokens (B, T) as configured; each row is drawn separately."""
    if x.dim() == 4:
        if augment.rotate:
            x = _rotate(x, augment.rotate, random)
        if augment.flip or augment.shift:
            x = _shift_and_flip(x, augment, random)
        if augment.erase:
            x = _erase(x, augment.erase, random)
        if augment.mask:
            x = _mask(x, augment.mask, random)
    elif x.dim() == 2 and augment.drop_tokens:
        x = _drop_tokens(x, augment.drop_tokens, random)
    return x


def augment_parts(
    x_BF: torch.Tensor, slices: Sequence[PartSlice], augment: Augment, random: torch.Generator
) -> torch.Tensor:
    """Augments the images and the tokens in mixed rows; a missing part stays 0."""
    x_BF = x_BF.clone()
    for part, start, stop in slices:
        if part.layout.kind in ("image", "tokens"):
            values = x_BF[:, start:stop].reshape(-1, *part.layout.shape)
            x_BF[:, start:stop] = augment_batch(values, augment, random).flatten(1)
    return x_BF


def mixup(x: torch.Tensor, y: torch.Tensor, alpha: float, random: torch.Generator) -> MixupBatch:
    """Mixes each row with another row of the batch.

    Source: Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1.
    """
    first, second = (torch._sample_dirichlet(torch.full((1, 2), alpha), random)[0]).tolist()
    share = max(first, second)
    order = torch.randperm(len(x), generator=random)
    return MixupBatch(x * share + x[order] * (1 - share), y, y[order], share)


def _shift_and_flip(x_BCHW: torch.Tensor, augment: Augment, random: torch.Generator) -> torch.Tensor:
    """Shifts by up to `shift` pixels, repeating the border, and mirrors half of the images."""
    num, _, height, width = x_BCHW.shape
    by_2B = torch.randint(-augment.shift, augment.shift + 1, (2, num), generator=random)
    rows_BH = (torch.arange(height) + by_2B[0, :, None]).clamp(0, height - 1)
    columns_BW = (torch.arange(width) + by_2B[1, :, None]).clamp(0, width - 1)
    if augment.flip:
        is_flipped_B = torch.rand(num, generator=random) < 0.5
        columns_BW = torch.where(is_flipped_B[:, None], columns_BW.flip(1), columns_BW)
    at_B = torch.arange(num)[:, None, None]
    # Advanced indexing leaves the channels last.
    moved_BHWC = x_BCHW.permute(0, 2, 3, 1)[at_B, rows_BH[:, :, None], columns_BW[:, None, :]]
    return moved_BHWC.permute(0, 3, 1, 2)


def _rotate(x_BCHW: torch.Tensor, degrees: float, random: torch.Generator) -> torch.Tensor:
    angle_B = (torch.rand(len(x_BCHW), generator=random) * 2 - 1) * degrees * torch.pi / 180
    sine_B, cosine_B, zero_B = angle_B.sin(), angle_B.cos(), torch.zeros_like(angle_B)
    # Grids range from -1 to 1, so a rotation has to correct for the aspect ratio.
    ratio = x_BCHW.shape[2] / x_BCHW.shape[3]
    turn_B23 = torch.stack(
        [
            torch.stack([cosine_B, -sine_B * ratio, zero_B], 1),
            torch.stack([sine_B / ratio, cosine_B, zero_B], 1),
        ],
        1,
    )
    grid = F.affine_grid(turn_B23, list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)


def _erase(x_BCHW: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """Sets a rectangle of a sixteenth to a quarter of the image to 0, in a fraction `share` of images.

    Source: Zhong et al. 2020, "Random Erasing Data Augmentation".
    """
    num, _, height, width = x_BCHW.shape
    is_chosen_B = torch.rand(num, generator=random) < share
    sides_2B = (0.25 + 0.25 * torch.rand(2, num, generator=random)) * torch.tensor([[height], [width]])
    corner_2B = torch.rand(2, num, generator=random) * (torch.tensor([[height], [width]]) - sides_2B)
    in_rows_BH = _interval_mask(height, corner_2B[0], sides_2B[0])
    in_columns_BW = _interval_mask(width, corner_2B[1], sides_2B[1])
    hole_BHW = in_rows_BH[:, :, None] & in_columns_BW[:, None, :] & is_chosen_B[:, None, None]
    return x_BCHW.masked_fill(hole_BHW[:, None], 0.0)


def _mask(x_BCHW: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """Sets one band of rows and one of columns to 0, each up to the fraction `share` of the side.

    Source: Park et al. 2019, "SpecAugment", section 2.
    """
    num, _, height, width = x_BCHW.shape
    for side, dim in ((height, 2), (width, 3)):
        length_B = torch.rand(num, generator=random) * share * side
        start_B = torch.rand(num, generator=random) * (side - length_B)
        band_BS = _interval_mask(side, start_B, length_B)
        x_BCHW = x_BCHW.masked_fill(band_BS[:, None, :, None] if dim == 2 else band_BS[:, None, None, :], 0.0)
    return x_BCHW


def _interval_mask(side: int, start_B: torch.Tensor, length_B: torch.Tensor) -> torch.Tensor:
    at_S = torch.arange(side) + 0.5
    return (at_S >= start_B[:, None]) & (at_S < (start_B + length_B)[:, None])


def _drop_tokens(x_BT: torch.Tensor, share: float, random: torch.Generator) -> torch.Tensor:
    """Removes tokens and closes the gaps, so that padding stays at the end; the first token is kept."""
    is_gone_BT = torch.rand(x_BT.shape, generator=random) < share
    is_gone_BT[:, 0] = False
    kept_BT = x_BT.masked_fill(is_gone_BT, 0.0)
    order_BT = (kept_BT == 0).to(torch.uint8).argsort(dim=1, stable=True)
    return kept_BT.gather(1, order_BT)
