"""The interface of the modules in `architectures` for networks that can be pruned."""

from __future__ import annotations

from typing import Protocol, TypeAlias, TypeVar

from torch import nn

from bloomery.data_contracts.records.tensor_layout import Layout

PrunableLayer: TypeAlias = nn.Conv2d | nn.Linear
NetworkT = TypeVar("NetworkT", bound=nn.Module)
ConfigT = TypeVar("ConfigT")


class PrunableArchitecture(Protocol[ConfigT, NetworkT]):
    """A kind of network with layers that can lose channels or units. A module with these functions is an instance."""

    def build(self, config: ConfigT, layout: Layout, num_outputs: int) -> NetworkT:
        """Builds an untrained network for rows of this layout. Raises RecipeInvalid if it cannot read them."""

    def prunable_layers(self, network: NetworkT) -> list[PrunableLayer]:
        """The layers with output channels or units that can be pruned."""

    def pruned_config(self, network: NetworkT, config: ConfigT) -> ConfigT:
        """`config` with the widths of `network`, so that a pruned network can be rebuilt."""
