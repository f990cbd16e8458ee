"""How far a student is from its teacher inside, whatever the widths of both: in features, and in what they attend to.

Shapes: B rows, F features, C channels, H height, W width, T steps, D values of a query, key or value.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.config import Distillation
from bloomery.models.networks.architectures.cnn import ConvNet
from bloomery.models.networks.architectures.lenet import LeNet5
from bloomery.models.networks.architectures.resnet import ResidualNetwork
from bloomery.models.networks.layers.padding import StepEmbedding

Activations = dict[str, torch.Tensor]

_PARTS = ("query", "key", "value")


def similarity_loss(mine_BF: torch.Tensor, taught_BF: torch.Tensor) -> torch.Tensor:
    """How differently each row is alike to the rows of its batch: squares, added up over the rows, at most 4 for each.

    The widths may differ. Turning the features, or stretching all of them alike, changes nothing.

    Source: Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation", section 3.1 (B^2 times its equation 4).
    """
    return (_likeness(mine_BF) - _likeness(taught_BF)).square().sum()


def _likeness(x_BF: torch.Tensor) -> torch.Tensor:
    x_BF = x_BF.float()
    return F.normalize(x_BF @ x_BF.T, dim=1)


def attention_map_loss(mine_BCHW: torch.Tensor, taught_BCHW: torch.Tensor) -> torch.Tensor:
    """How differently the places of each image are heeded: squares, added up over the rows, at most 2 for each.

    A place is heeded by its mean square over the channels, of which there may be other numbers; of two resolutions the
    lower is taken. Stretching all channels alike changes nothing.

    Source: Zagoruyko & Komodakis 2017, "Paying More Attention to Attention", section 3.1 (the square of what its
    equation 2 adds up, as its authors' code has it).
    """
    sizes = zip(mine_BCHW.shape[2:], taught_BCHW.shape[2:], strict=True)
    height, width = (min(pair) for pair in sizes)
    mine_BP, taught_BP = (_heeded(one, (height, width)) for one in (mine_BCHW, taught_BCHW))
    return (mine_BP - taught_BP).square().sum()


def _heeded(x_BCHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    square_BHW = x_BCHW.float().square().mean(1)
    over_height, over_width = (_averages(*ends, x_BCHW.device) for ends in zip(square_BHW.shape[1:], size, strict=True))
    return F.normalize((over_height @ square_BHW @ over_width.T).flatten(1), dim=1)


def _averages(num: int, fewer: int, device: torch.device) -> torch.Tensor:
    """(fewer, num): what makes means of `num` places, as `adaptive_avg_pool2d` does.

    That one's gradient is added up on a GPU in no fixed order.
    """
    places = torch.arange(num, device=device)
    ends = torch.arange(fewer + 1, device=device) * num
    first, behind = ends[:-1] // fewer, -(-ends[1:] // fewer)
    is_in = (places >= first[:, None]) & (places < behind[:, None])
    return is_in / is_in.sum(1, keepdim=True)


def relation_loss(mine_BTD: torch.Tensor, taught_BTD: torch.Tensor, there_BT: torch.Tensor) -> torch.Tensor:
    """How differently the steps of each row relate to each other: the mean divergence of a step, added up over rows.

    What a step relates to is the softmax of its products with all steps that are there. Widths, and numbers of heads,
    may differ: the heads count as one. Turning what the steps have changes nothing.

    Source: Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers", section 3.1 (with one relation head).
    """
    mine_BTT, taught_BTT = (_relations(one, there_BT) for one in (mine_BTD, taught_BTD))
    apart_BT = F.kl_div(mine_BTT, taught_BTT, reduction="none", log_target=True).sum(2)
    return ((apart_BT * there_BT).sum(1) / there_BT.sum(1).clamp(min=1)).sum()


def _relations(x_BTD: torch.Tensor, there_BT: torch.Tensor) -> torch.Tensor:
    x_BTD = x_BTD.float()
    products_BTT = x_BTD @ x_BTD.transpose(1, 2) / x_BTD.shape[2] ** 0.5
    # Not minus infinity: its difference from itself is no number.
    return products_BTT.masked_fill(~there_BT.unsqueeze(1), torch.finfo(products_BTT.dtype).min).log_softmax(2)


@contextmanager
def capture_activations(network: nn.Module, how: Distillation) -> Iterator[Activations]:
    """What `how` asks for of each pass through `network`, by name. No hook is left behind.

    Features are what goes into the head; maps of an image are those of the last convolution or block; queries, keys and
    values are those of the last attention.
    """
    heard: Activations = {}
    hooks = []
    if how.features:
        hooks.append(
            network.head.register_forward_pre_hook(lambda _, given: heard.update(features=given[0]))  # type: ignore[union-attr]
        )
    for name, module in _attending(network).items() if how.attention else ():
        hooks.append(module.register_forward_hook(lambda _, given, made, name=name: heard.update({name: made})))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def _attending(network: nn.Module) -> dict[str, nn.Module]:
    match network:
        case ConvNet() | ResidualNetwork():
            return {"maps": network.blocks}
        case LeNet5():
            return {"maps": network.second}
    *_, last = (module for module in network.modules() if all(hasattr(module, part) for part in _PARTS))
    return {part: getattr(last, part) for part in _PARTS}


def feature_matching_loss(
    mine: Activations, taught: Activations, there_BT: torch.Tensor | None, how: Distillation
) -> torch.Tensor:
    """All that `how` asks for, weighted and added up over the rows; `there_BT`, None for all, says which steps count.

    Raises:
        RecipeInvalid: there is but one place to attend to.
    """
    distances = []
    if how.features:
        distances.append(how.features * similarity_loss(mine["features"], taught["features"]))
    if how.attention and "maps" in mine:
        _require_places(mine["maps"], taught["maps"])
        distances.append(how.attention * attention_map_loss(mine["maps"], taught["maps"]))
    elif how.attention:
        for part in _PARTS:
            num = mine[part].shape[1]  # a teacher, which does not learn, keeps the steps that are padding in every row
            there = mine[part].new_ones(mine[part].shape[:2], dtype=torch.bool) if there_BT is None else there_BT
            apart = relation_loss(mine[part], taught[part][:, :num], there[:, :num])
            distances.append(how.attention * apart)
    return torch.stack(distances).sum()


def _require_places(mine_BCHW: torch.Tensor, taught_BCHW: torch.Tensor) -> None:
    for x_BCHW in (mine_BCHW, taught_BCHW):
        if x_BCHW[0, 0].numel() == 1:
            raise RecipeInvalid(
                "the student is to attend to what its teacher does, and one of them ends in a single place",
                required="at least two places in the last maps of both",
                where="compression.distill.attention of the recipe",
                remedy="leave `attention` out, or use fewer blocks in a cnn, each of which halves the image",
            )


def valid_steps(network: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """there_BT bool, which is true where a step of `x` is no padding; None for a network that reads no steps."""
    steps = next((module for module in network.modules() if isinstance(module, StepEmbedding)), None)
    return None if steps is None else steps.step_mask(x)
