"""TabM: an ensemble of perceptrons for tables, with shared weights.

Source: Gorishniy, Kotelnikov & Babenko 2025, "TabM: Advancing Tabular Deep Learning with Parameter-Efficient
Ensembling"; Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular Deep Learning", section 3.2
(piecewise linear functions of quantiles). The layers are those of the packages `tabm` and `rtdl_num_embeddings`.

Shapes: B rows, F values of a row, N numbers, C categories, E members, W width of a layer, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout, Task
from bloomery.models.networks.architectures.mlp import embedding_width
from bloomery.models.networks.config import TabM
from bloomery.models.networks.layers.ordinal import class_log_probabilities
from bloomery.models.networks.layers.tabular_embedding import TabularInput, require_flat

_MAX_ONE_HOT = 32  # categories of a column; a column with more gets an embedding
_MIN_RELATIVE_WIDTH = 1e-4  # of a bin
_MIN_EDGES = 3  # with fewer edges, a number has at most two values or one bin, and is not embedded


class TabularEnsemble(nn.Module):
    """x float32 (B, F) -> float32 (B, K): the mean of the members' predictions.

    Of several labels the outputs are averaged. Of a classification, the output is the logarithm of the members' mean
    probabilities. Of sets of labels it is the logarithm of the odds of each label, by the members' mean probability.
    """

    def __init__(self, config: TabM, layout: Layout, num_outputs: int, task: Task = "classification") -> None:
        from tabm import EnsembleView, LinearEnsemble, make_tabm_backbone

        super().__init__()
        require_flat(layout, "tabm")
        self.task = task
        self.columns = TabularInput(layout)
        self.numbers = NumberEmbedding(config, self.columns.num_numbers)
        self.categories = nn.ModuleList(map(_category_layer, self.columns.counts))
        widths = [*self.numbers.widths, *map(_category_width, self.columns.counts)]
        self.view = EnsembleView(k=config.members)
        self.backbone = make_tabm_backbone(
            d_in=sum(widths),
            n_blocks=config.num_layers,
            d_block=config.width,
            dropout=config.dropout,
            k=config.members,
            # A column's values share the sign or factor by which a member scales them.
            start_scaling_init="normal" if self.numbers.is_embedding else "random-signs",
            start_scaling_init_chunks=widths,
        )
        self.head = LinearEnsemble(config.width, num_outputs - (task == "ordinal"), k=config.members)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs_BEK = self.member_outputs(x)
        if outputs_BEK.shape[2] == 1 or self.task in ("multioutput", "multitask"):
            return outputs_BEK.mean(dim=1)
        if self.task == "multilabel":
            # As two classes, since the logarithm of a sigmoid is exported as such and underflows.
            pairs_BEK2 = torch.stack([outputs_BEK, torch.zeros_like(outputs_BEK)], dim=3)
            shares_BK2 = torch.log_softmax(pairs_BEK2, dim=3).logsumexp(dim=1)
            return shares_BK2[:, :, 0] - shares_BK2[:, :, 1]
        num_members = outputs_BEK.shape[1]
        return torch.log_softmax(outputs_BEK, dim=2).logsumexp(dim=1) - math.log(num_members)

    def member_outputs(self, x: torch.Tensor) -> torch.Tensor:
        """The outputs of each member, float32 (B, E, K). Training averages the losses of the members."""
        x_BN, codes_BC = self.columns(x)
        rows = [layer(codes_BC[:, position]) for position, layer in enumerate(self.categories)]
        outputs_BEK = self.head(self.backbone(self.view(torch.cat([self.numbers(x_BN), *rows], dim=1))))
        return class_log_probabilities(outputs_BEK) if self.task == "ordinal" else outputs_BEK


class NumberEmbedding(nn.Module):
    """x_BN float32 -> float32 (B, sum of `widths`): embeddings of the numbers with bins, and the others as they are."""

    _embedded: torch.Tensor
    _others: torch.Tensor

    def __init__(self, config: TabM, num_numbers: int) -> None:
        from rtdl_num_embeddings import PiecewiseLinearEmbeddings

        super().__init__()
        edges = config.edges or ((),) * num_numbers
        embedded = [position for position in range(num_numbers) if len(edges[position]) >= _MIN_EDGES]
        others = [position for position in range(num_numbers) if len(edges[position]) < _MIN_EDGES]
        self.is_embedding = bool(embedded)
        self.widths = [config.embedding] * len(embedded) + [1] * len(others)
        # Not persistent, because the blueprint determines them.
        self.register_buffer("_embedded", torch.tensor(embedded, dtype=torch.int64), persistent=False)
        self.register_buffer("_others", torch.tensor(others, dtype=torch.int64), persistent=False)
        bins = [torch.tensor(edges[position], dtype=torch.float32) for position in embedded]
        # At first a linear embedding, to which training adds the pieces (version B of the package).
        self.pieces = (
            PiecewiseLinearEmbeddings(bins, config.embedding, activation=False, version="B") if embedded else None
        )

    def forward(self, x_BN: torch.Tensor) -> torch.Tensor:
        others_BN = x_BN.index_select(1, self._others)
        if self.pieces is None:
            return others_BN
        embedded_BW = self.pieces(x_BN.index_select(1, self._embedded)).flatten(1)
        return torch.cat([embedded_BW, others_BN], dim=1)


def _category_width(count: int) -> int:
    return embedding_width(count) if count > _MAX_ONE_HOT else count


def _category_layer(count: int) -> nn.Embedding:
    """Few categories start as a one-hot encoding, which training may change; more get an embedding."""
    layer = nn.Embedding(count, _category_width(count))
    if count <= _MAX_ONE_HOT:
        nn.init.eye_(layer.weight)
    return layer


def compute_edges(x: torch.Tensor, layout: Layout, num_bins: int) -> tuple[tuple[float, ...], ...]:
    """The edges of the bins of each number in training rows `x` (B, F): distinct quantiles, from low to high.

    A number with at most two values has none.
    """
    x_BN, _ = TabularInput(layout)(x)
    return tuple(_edges_of(column, num_bins) for column in x_BN.T)


def _edges_of(column: torch.Tensor, num_bins: int) -> tuple[float, ...]:
    values = column.unique()
    if len(values) < _MIN_EDGES:
        return ()
    if len(values) > num_bins:
        values = (
            torch.quantile(column.double(), torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)).float().unique()
        )
    edges = _without_narrow_bins(values.tolist())
    return edges if len(edges) >= _MIN_EDGES else ()


def _without_narrow_bins(values: Sequence[float]) -> tuple[float, ...]:
    """The values without those that are too close to the one before for float32 arithmetic."""
    edges = [values[0]]
    for value in values[1:]:
        if value - edges[-1] > _MIN_RELATIVE_WIDTH * max(abs(value), abs(edges[-1])):
            edges.append(value)
    return tuple(edges)


def build(config: TabM, layout: Layout, num_outputs: int, task: Task = "classification") -> TabularEnsemble:
    return TabularEnsemble(config, layout, num_outputs, task)
