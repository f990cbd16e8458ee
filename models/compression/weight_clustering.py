"""Weight sharing: a layer's weights as indices into a few values, which go on learning.

    with nearing(network, num_values=8):  # the weights learn to do with few values
        train(network, ...)
    with shared(network, share(network, num_values=8)):  # the values learn
        train(network, ...)

Zeros stay zero in the second part; in the first, hold them (`sparsity.held`). Afterwards each tensor has at most
`num_values` values besides zero, each of them exact in 16 bits.

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

_FOLLOWED_STEPS = 100
_ROUNDS = 300  # of k-means, which nearly always stands still long before


class Codebook(NamedTuple):
    """A tensor's weights that are not zero: at `places` int64 (N,) of the flat tensor stand `values[codes]`."""

    places: torch.Tensor
    codes: torch.Tensor  # int64 (N,), below K
    values: torch.Tensor  # float32 (K,), rising


def cluster_weights(network: nn.Module, num_values: int, *, of_biases: int | None = None) -> dict[str, Codebook]:
    """A codebook for each of `network`'s parameters, by name. Zeros stay what they are; the network is left as it is.

    `of_biases` is the number of values of what has one dimension; left out, the same.

    Raises:
        RecipeInvalid: a number of values is not from 2 to 256.
    """
    for number in (num_values, of_biases or num_values):
        if not 2 <= number <= 256:
            raise RecipeInvalid(
                f"a codebook of {number} values",
                required="2 to 256",
                where="the codebook of a candidate",
                remedy="8 or 16 values lose next to nothing where weights are fine-tuned",
            )
    return {
        name: fit_codebook(parameter, num_values if parameter.dim() > 1 else of_biases or num_values)
        for name, parameter in network.named_parameters()
    }


def fit_codebook(weight: torch.Tensor, num_values: int) -> Codebook:
    """The values closest to `weight`'s, by k-means from evenly spaced values, which keeps the large ones."""
    flat = weight.detach().cpu().flatten()
    places = flat.nonzero().flatten()
    given = flat[places].numpy().astype(np.float64)
    values, codes = kmeans(given, num_values)
    return Codebook(places, torch.from_numpy(codes), torch.from_numpy(values.astype(np.float32)))


def kmeans(given: np.ndarray, num_values: int) -> tuple[np.ndarray, np.ndarray]:
    """(values float64 (K,) rising, codes int64 (N,)) for `given` float64 (N,), K at most `num_values`.

    The same figures give the same values, and the work grows with N log N alone: in one dimension a cluster is a
    stretch of the sorted figures, which a library for many dimensions does not use.

    Source: Lloyd 1982, "Least squares quantization in PCM"; Han et al. 2016, section 3.2 (linear initialisation).
    """
    if not len(given):
        return np.empty(0), np.empty(0, np.int64)
    ordered = np.sort(given)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    values = np.unique(np.linspace(ordered[0], ordered[-1], num_values))
    for _ in range(_ROUNDS):
        borders = np.searchsorted(ordered, (values[1:] + values[:-1]) / 2)
        edges = np.concatenate([[0], borders, [len(ordered)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges])[counts > 0] / counts[counts > 0]  # a value that nothing is close to goes
        if len(means) == len(values) and np.array_equal(means, values):
            break
        values = np.unique(means)
    return values, np.searchsorted((values[1:] + values[:-1]) / 2, given).astype(np.int64)


@contextmanager
def shared_weights(network: nn.Module, books: Mapping[str, Codebook]) -> Iterator[None]:
    """Within, what learns are the values of `books`, by the gradients of all weights that share one, added up.

    Afterwards the network has the weights that the books then stand for, as ordinary parameters.
    """
    parted = [(*_owner(network, name), book) for name, book in books.items()]
    for module, name, book in parted:
        weight = getattr(module, name)
        form = _Looked(weight, book)
        with torch.no_grad():
            weight.copy_(form(book.values))
        parametrize.register_parametrization(module, name, form)
    try:
        yield
    finally:
        for module, name, _ in parted:
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)


@contextmanager
def straight_through_clusters(network: nn.Module, num_values: int, *, of_biases: int | None = None) -> Iterator[None]:
    """Within, the network answers with each weight at the nearest of its tensor's few values, and the weights learn.

    The values follow the weights: they are found again every hundred steps. So weights move from one value to another
    where that helps, which they cannot within `shared`. Afterwards the weights are again any figures; `share` them.

    Source: Courbariaux et al. 2015, "BinaryConnect", section 2.3 (weights learn behind what is computed with).
    """
    parted = [
        (*_owner(network, name), num_values if parameter.dim() > 1 else of_biases or num_values)
        for name, parameter in network.named_parameters()
    ]
    for module, name, number in parted:
        parametrize.register_parametrization(module, name, _Nearest(number))
    try:
        yield
    finally:
        for module, name, _ in parted:
            learnt = module.parametrizations[name].original.detach().clone()  # type: ignore[union-attr, index]
            parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            with torch.no_grad():
                getattr(module, name).copy_(learnt)


class _Nearest(nn.Module):
    """weight -> the same with the nearest of few values for each figure but zero, and the gradient straight through."""

    def __init__(self, num_values: int) -> None:
        super().__init__()
        self.num_values, self.num_steps = num_values, 0
        self.values = torch.empty(0)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        learnt = weight.detach().contiguous()  # channels may lie last
        if self.num_steps % _FOLLOWED_STEPS == 0:
            self.values = fit_codebook(learnt, self.num_values).values.to(weight.device)
        self.num_steps += self.training
        if not len(self.values):
            return weight
        nearest = self.values[torch.bucketize(learnt, (self.values[1:] + self.values[:-1]) / 2)]
        return weight + torch.where(learnt == 0, 0.0, nearest - learnt)


class _Looked(nn.Module):
    """values float32 (K,) -> the tensor in which they stand at their places."""

    places: torch.Tensor
    codes: torch.Tensor

    def __init__(self, weight: torch.Tensor, book: Codebook) -> None:
        super().__init__()
        self.shape = weight.shape
        self.first = book.values
        self.register_buffer("places", book.places, persistent=False)
        self.register_buffer("codes", book.codes, persistent=False)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        # Straight through the rounding (Bengio et al. 2013): the gradient is that of the value as it is.
        rounded = values + (values.detach().bfloat16().float() - values.detach())
        flat = rounded.new_zeros(self.shape.numel())
        return flat.scatter(0, self.places, rounded[self.codes]).reshape(self.shape)

    def right_inverse(self, weight: torch.Tensor) -> torch.Tensor:
        return self.first.to(weight.device).clone()


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return network.get_submodule(path), last
