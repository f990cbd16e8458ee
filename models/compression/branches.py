"""The branches of a fused network, which compression changes one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.records.tensor_layout import PartSlice
from bloomery.models.networks.architectures.fused import FusedNetwork, branch_configs, part_rows
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Fused
from bloomery.models.networks.pretrained_config import Pretrained


class NamedBranch(NamedTuple):
    """A branch, a blueprint that builds it, and the part of a mixed row that it reads."""

    network: nn.Module
    blueprint: Blueprint
    place: PartSlice

    def rows(self, x_BF: torch.Tensor) -> torch.Tensor:
        """The values of the branch's part of mixed rows."""
        return part_rows(x_BF, *self.place)


def list_branches(network: FusedNetwork, blueprint: Blueprint) -> list[NamedBranch]:
    """Each branch, in the order of the parts."""
    assert isinstance(blueprint.config, Fused)
    configs = branch_configs(blueprint.config, blueprint.layout)
    return [
        NamedBranch(
            branch,
            Blueprint(config=configs[place.part.name], layout=place.part.layout, num_outputs=blueprint.config.width),
            place,
        )
        for branch, place in zip(network.branches, network.slices, strict=True)
    ]


def change_pretrained_branches(
    network: FusedNetwork,
    blueprint: Blueprint,
    find_obstacle: Callable[[Pretrained], str | None],
    change: Callable[[NamedBranch], tuple[nn.Module, Blueprint]],
) -> tuple[nn.Module, Blueprint]:
    """A copy of `network` in which `change` replaces each pretrained branch without an obstacle, and its blueprint.

    All other branches and the join keep their weights. `network` does not change.
    """
    configs, changed = {}, {}
    for number, branch in enumerate(list_branches(network, blueprint)):
        config = branch.blueprint.config
        if isinstance(config, Pretrained) and find_obstacle(config) is None:
            changed[f"branches.{number}."], branch_blueprint = change(branch)
            config = branch_blueprint.config
        configs[branch.place.part.name] = config
    smaller = blueprint.model_copy(update={"config": blueprint.config.model_copy(update={"branches": configs})})
    weights = {name: weight for name, weight in network.state_dict().items() if not name.startswith(tuple(changed))}
    for prefix, branch_network in changed.items():
        weights |= {f"{prefix}{name}": weight for name, weight in branch_network.state_dict().items()}
    rebuilt = build_network(smaller)
    rebuilt.load_state_dict(weights)
    return rebuilt.eval(), smaller
