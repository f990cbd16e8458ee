"""Product quantization: vectors as a few codes of one byte, each for a part of the vector.

Shapes: N vectors, W width, P parts, D width of a part, C codes.
"""

from __future__ import annotations

import torch

from bloomery.models.networks.layers.trimmed_embedding import NUM_CODES, part_width

_ITERATIONS = 12  # of k-means; more hardly reduce the error
_CHUNK = 16_384  # vectors that are compared at once


def fit_product_codes(x_NW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes uint8 (N, P), from 1 on, and the codebook float32 (P, C, D), in which code 0 stands for zeros.

    Source: Jégou et al. 2011, "Product Quantization for Nearest Neighbor Search", section II.
    """
    parts = x_NW.split(part_width(x_NW.shape[1]), dim=1)
    codes = torch.zeros(len(x_NW), len(parts), dtype=torch.uint8)
    codebook = torch.zeros(len(parts), NUM_CODES, parts[0].shape[1])
    for number, x_ND in enumerate(parts):
        centroids = _fit_centroids(x_ND.contiguous())
        codebook[number, 1 : len(centroids) + 1] = centroids
        codes[:, number] = (_nearest(x_ND, centroids) + 1).to(torch.uint8)
    return codes, codebook


def _fit_centroids(x_ND: torch.Tensor) -> torch.Tensor:
    """At most `NUM_CODES` - 1 centroids by k-means, which starts at vectors at equal distances."""
    num_centroids = min(NUM_CODES - 1, len(x_ND))
    centroids = x_ND[torch.arange(num_centroids) * len(x_ND) // max(num_centroids, 1)].clone()
    for _ in range(_ITERATIONS if num_centroids < len(x_ND) else 0):
        nearest_N = _nearest(x_ND, centroids)
        sums = torch.zeros_like(centroids).index_add_(0, nearest_N, x_ND)
        counts = torch.bincount(nearest_N, minlength=num_centroids)[:, None]
        centroids = torch.where(counts > 0, sums / counts.clamp(min=1), centroids)
    return centroids


def _nearest(x_ND: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """The position of the nearest centroid, int64 (N,)."""
    if not len(x_ND):
        return torch.zeros(0, dtype=torch.long)
    squares = centroids.square().sum(1)
    return torch.cat([(squares - 2 * part @ centroids.T).argmin(1) for part in x_ND.split(_CHUNK)])
