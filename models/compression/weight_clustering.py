"""Weight clustering: a layer's weights as indices into a few trainable centroids.

    with straight_through_clusters(network, num_clusters=8):  # the weights adapt to few values
        train(network, ...)
    with shared_weights(network, cluster_weights(network, num_clusters=8)):  # the centroids are trained
        train(network, ...)

Zeros stay zero in the second block; in the first, fix them with `pruning.unstructured.fixed_masks`. Afterwards each
tensor has at most `num_clusters` distinct nonzero values, each exact in bfloat16.

Source: Han et al. 2016, "Deep Compression", section 3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.utils.parametrize as parametrize
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid

_REFIT_STEPS = 100
_MAX_ITERATIONS = 300  # of k-means, which nearly always converges long before


class Codebook(NamedTuple):
    """The nonzero weights of a tensor: the flat tensor has the values `centroids[indices]` at `positions`."""

    positions: torch.Tensor  # int64 (N,)
    indices: torch.Tensor  # int64 (N,), below K
    centroids: torch.Tensor  # float32 (K,), rising


def cluster_weights(
    network: nn.Module, num_clusters: int, *, num_bias_clusters: int | None = None
) -> dict[str, Codebook]:
    """A codebook for each parameter of `network`, by name. Zeros stay zero; `network` does not change.

    `num_bias_clusters` is for parameters of one dimension; default: `num_clusters`.

    Raises:
        RecipeInvalid: a number of clusters is not from 2 to 256.
    """
    for number in (num_clusters, num_bias_clusters or num_clusters):
        if not 2 <= number <= 256:
            raise RecipeInvalid(
                f"weight clustering with {number} clusters",
                required="2 to 256",
                where="num_clusters of a candidate",
                remedy="use 8 or 16 clusters, which lose almost no accuracy after fine-tuning",
            )
    return {
        name: fit_codebook(parameter, num_clusters if parameter.dim() > 1 else num_bias_clusters or num_clusters)
        for name, parameter in network.named_parameters()
    }


def fit_codebook(weight: torch.Tensor, num_clusters: int) -> Codebook:
    """The centroids nearest to the values of `weight`, by k-means from evenly spaced values, which keeps large ones."""
    flat = weight.detach().cpu().flatten()
    positions = flat.nonzero().flatten()
    values = flat[positions].numpy().astype(np.float64)
    centroids, indices = kmeans(values, num_clusters)
    return Codebook(positions, torch.from_numpy(indices), torch.from_numpy(centroids.astype(np.float32)))


def kmeans(values: np.ndarray, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """(centroids float64 (K,) rising, indices int64 (N,)) for `values` float64 (N,), K at most `num_clusters`.

    Deterministic, in O(N log N): in one dimension a cluster is a range of the sorted values, which libraries for many
    dimensions don't exploit.

    Source: Lloyd 1982, "Least squares quantization in PCM"; Han et al. 2016, section 3.2 (linear initialisation).
    """
    if not len(values):
        return np.empty(0), np.empty(0, np.int64)
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.unique(np.linspace(ordered[0], ordered[-1], num_clusters))
    for _ in range(_MAX_ITERATIONS):
        borders = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges])[counts > 0] / counts[counts > 0]  # drops empty clusters
        if len(means) == len(centroids) and np.array_equal(means, centroids):
            break
        centroids = np.unique(means)
    return centroids, np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values).astype(np.int64)


@contextmanager
def shared_weights(network: nn.Module, codebooks: Mapping[str, Codebook]) -> Iterator[None]:
    """Within, the trainable parameters are the centroids; a centroid's gradient is the sum over its weights.

    Afterwards the network has ordinary parameters again, with the values of the trained centroids.
    """
    owners = [(*_owner(network, name), codebook) for name, codebook in codebooks.items()]
    for module, name, codebook in owners:
        weight = getattr(module, name)
        lookup = _CentroidLookup(weight, codebook)
        with torch.no_grad():
            weight.copy_(lookup(codebook.centroids))
        parametrize.register_parametrization(module, name, lookup)
    try:
        yield
    finally:
        for module, name, _ in owners:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


@contextmanager
def straight_through_clusters(
    network: nn.Module, num_clusters: int, *, num_bias_clusters: int | None = None
) -> Iterator[None]:
    """Within, the forward pass uses each weight's nearest centroid, and gradients pass straight to the weights.

    Centroids are fitted again every hundred steps, so weights can move to another cluster, which they cannot within
    `shared_weights`. Afterwards the weights are arbitrary again; then call `cluster_weights`.

    Source: Courbariaux et al. 2015, "BinaryConnect", section 2.3 (real-valued weights behind the discrete ones).
    """
    owners = [
        (*_owner(network, name), num_clusters if parameter.dim() > 1 else num_bias_clusters or num_clusters)
        for name, parameter in network.named_parameters()
    ]
    for module, name, number in owners:
        parametrize.register_parametrization(module, name, _NearestCentroid(number))
    try:
        yield
    finally:
        for module, name, _ in owners:
            trained = module.parametrizations[name].original.detach().clone()  # type: ignore[union-attr, index]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            with torch.no_grad():
                getattr(module, name).copy_(trained)


class _NearestCentroid(nn.Module):
    """weight -> each nonzero value's nearest centroid, with a straight-through gradient."""

    def __init__(self, num_clusters: int) -> None:
        super().__init__()
        self.num_clusters, self.num_steps = num_clusters, 0
        self.centroids = torch.empty(0)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        values = weight.detach().contiguous()  # the layout may be channels last
        if self.num_steps % _REFIT_STEPS == 0:
            self.centroids = fit_codebook(values, self.num_clusters).centroids.to(weight.device)
        self.num_steps += self.training
        if not len(self.centroids):
            return weight
        nearest = self.centroids[torch.bucketize(values, (self.centroids[1:] + self.centroids[:-1]) / 2)]
        return weight + torch.where(values == 0, 0.0, nearest - values)


class _CentroidLookup(nn.Module):
    """centroids float32 (K,) -> the tensor that holds them at their positions."""

    positions: torch.Tensor
    indices: torch.Tensor

    def __init__(self, weight: torch.Tensor, codebook: Codebook) -> None:
        super().__init__()
        self.shape = weight.shape
        self.initial_centroids = codebook.centroids
        self.register_buffer("positions", codebook.positions, persistent=False)
        self.register_buffer("indices", codebook.indices, persistent=False)

    def forward(self, centroids: torch.Tensor) -> torch.Tensor:
        # Straight-through rounding (Bengio et al. 2013): the gradient is that of the unrounded centroid.
        rounded = centroids + (centroids.detach().bfloat16().float() - centroids.detach())
        flat = rounded.new_zeros(self.shape.numel())
        return flat.scatter(0, self.positions, rounded[self.indices]).reshape(self.shape)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return self.initial_centroids.to(weight.device).clone()


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return network.get_submodule(path), last
