"""Feature matching: losses between the inner activations of a student and its teacher, also of different widths.

Shapes: B rows, F features, C channels, H height, W width, P positions, T steps, D width of a query, key or value.
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
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.architectures.resnet import ResidualNetwork
from bloomery.models.networks.body_families import FAMILIES
from bloomery.models.networks.body_layers import linear_maps, list_layers
from bloomery.models.networks.layers.padding import StepEmbedding

Activations = dict[str, torch.Tensor]

_PROJECTIONS = ("query", "key", "value")


def similarity_loss(student_BF: torch.Tensor, teacher_BF: torch.Tensor) -> torch.Tensor:
    """Squared difference of the rows' similarities within the batch, summed over rows; at most 4 for each.

    The widths may differ. Rotating the features, or scaling all by one factor, changes nothing.

    Source: Tung & Mori 2019, "Similarity-Preserving Knowledge Distillation", section 3.1 (B^2 times its equation 4).
    """
    return (_similarities(student_BF) - _similarities(teacher_BF)).square().sum()


def _similarities(x_BF: torch.Tensor) -> torch.Tensor:
    x_BF = x_BF.float()
    return F.normalize(x_BF @ x_BF.T, dim=1)


def attention_map_loss(student_BCHW: torch.Tensor, teacher_BCHW: torch.Tensor) -> torch.Tensor:
    """Squared difference of the images' attention maps, summed over rows; at most 2 for each.

    The attention to a position is its mean square over the channels; their number may differ. Maps are compared at the
    lower of the two resolutions. Scaling all channels by one factor changes nothing.

    Source: Zagoruyko & Komodakis 2017, "Paying More Attention to Attention", section 3.1 (the square of the summands of
    equation 2, as in the authors' code).
    """
    sizes = zip(student_BCHW.shape[2:], teacher_BCHW.shape[2:], strict=True)
    height, width = (min(pair) for pair in sizes)
    student_BP, teacher_BP = (_attention_map(x_BCHW, (height, width)) for x_BCHW in (student_BCHW, teacher_BCHW))
    return (student_BP - teacher_BP).square().sum()


def _attention_map(x_BCHW: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    square_BHW = x_BCHW.float().square().mean(1)
    over_height, over_width = (
        _pooling_matrix(*sizes, x_BCHW.device) for sizes in zip(square_BHW.shape[1:], size, strict=True)
    )
    return F.normalize((over_height @ square_BHW @ over_width.T).flatten(1), dim=1)


def _pooling_matrix(num_inputs: int, num_outputs: int, device: torch.device) -> torch.Tensor:
    """(outputs, inputs): averages as `adaptive_avg_pool2d`, which has no deterministic gradient on a GPU."""
    positions = torch.arange(num_inputs, device=device)
    ends = torch.arange(num_outputs + 1, device=device) * num_inputs
    starts, stops = ends[:-1] // num_outputs, -(-ends[1:] // num_outputs)
    is_in = (positions >= starts[:, None]) & (positions < stops[:, None])
    return is_in / is_in.sum(1, keepdim=True)


def relation_loss(student_BTD: torch.Tensor, teacher_BTD: torch.Tensor, valid_BT: torch.Tensor) -> torch.Tensor:
    """Divergence between the relations of steps, averaged over the valid steps of a row and summed over rows.

    The relations of a step are the softmax of its products with all valid steps. Widths and numbers of heads may
    differ: all heads count as one. Rotating the vectors changes nothing.

    Source: Wang et al. 2021, "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained
    Transformers", section 3.1 (with one relation head).
    """
    student_BTT, teacher_BTT = (_relations(x_BTD, valid_BT) for x_BTD in (student_BTD, teacher_BTD))
    divergence_BT = F.kl_div(student_BTT, teacher_BTT, reduction="none", log_target=True).sum(2)
    return ((divergence_BT * valid_BT).sum(1) / valid_BT.sum(1).clamp(min=1)).sum()


def _relations(x_BTD: torch.Tensor, valid_BT: torch.Tensor) -> torch.Tensor:
    x_BTD = x_BTD.float()
    products_BTT = x_BTD @ x_BTD.transpose(1, 2) / x_BTD.shape[2] ** 0.5
    # Not minus infinity: the difference of two infinities is not a number.
    return products_BTT.masked_fill(~valid_BT.unsqueeze(1), torch.finfo(products_BTT.dtype).min).log_softmax(2)


@contextmanager
def capture_activations(network: nn.Module, distillation: Distillation) -> Iterator[Activations]:
    """The activations of each pass through `network` that `distillation` compares, by name. Hooks are removed at exit.

    Features are the inputs of the head; maps of an image come from the last convolution or block; queries, keys and
    values from the last attention.
    """
    activations: Activations = {}
    hooks = []
    if distillation.feature_weight:
        hooks.append(
            network.head.register_forward_pre_hook(lambda _, inputs: activations.update(features=inputs[0]))  # type: ignore[union-attr]
        )
    for name, module in _attention_modules(network).items() if distillation.attention_weight else ():
        hooks.append(
            module.register_forward_hook(lambda _, inputs, output, name=name: activations.update({name: output}))
        )
    try:
        yield activations
    finally:
        for hook in hooks:
            hook.remove()


def _attention_modules(network: nn.Module) -> dict[str, nn.Module]:
    match network:
        case ConvNet() | ResidualNetwork():
            return {"maps": network.blocks}
        case LeNet5():
            return {"maps": network.second}
    if isinstance(network, PretrainedNetwork):
        names = FAMILIES[network.body.config.model_type]
        maps = linear_maps(list_layers(network.body, names)[-1], names)
        return {name: getattr(maps, name) for name in _PROJECTIONS}
    *_, last = (module for module in network.modules() if all(hasattr(module, name) for name in _PROJECTIONS))
    return {name: getattr(last, name) for name in _PROJECTIONS}


def feature_matching_loss(
    student: Activations, teacher: Activations, valid_BT: torch.Tensor | None, distillation: Distillation
) -> torch.Tensor:
    """The weighted losses that `distillation` configures, summed over rows. `valid_BT` marks valid steps; None: all.

    Raises:
        RecipeInvalid: an attention map has a single position.
    """
    losses = []
    if distillation.feature_weight:
        losses.append(distillation.feature_weight * similarity_loss(student["features"], teacher["features"]))
    if distillation.attention_weight and "maps" in student:
        _require_positions(student["maps"], teacher["maps"])
        losses.append(distillation.attention_weight * attention_map_loss(student["maps"], teacher["maps"]))
    elif distillation.attention_weight:
        for name in _PROJECTIONS:
            x_BTD = student[name]
            num_steps = x_BTD.shape[1]  # the teacher, in evaluation mode, keeps steps that are padding in every row
            valid = x_BTD.new_ones(x_BTD.shape[:2], dtype=torch.bool) if valid_BT is None else valid_BT
            loss = relation_loss(x_BTD, teacher[name][:, :num_steps], valid[:, :num_steps])
            losses.append(distillation.attention_weight * loss)
    return torch.stack(losses).sum()


def _require_positions(student_BCHW: torch.Tensor, teacher_BCHW: torch.Tensor) -> None:
    for x_BCHW in (student_BCHW, teacher_BCHW):
        if x_BCHW[0, 0].numel() == 1:
            raise RecipeInvalid(
                "attention transfer needs maps, and the last maps of the student or its teacher have a single position",
                required="at least two positions in the last maps of both",
                where="compression.distill.attention_weight of the recipe",
                remedy="leave `attention_weight` out, or use fewer blocks in a cnn, each of which halves the image",
            )


def valid_steps(network: nn.Module, x: torch.Tensor) -> torch.Tensor | None:
    """valid_BT bool: which steps of `x` are not padding; None for a network that reads no steps."""
    if isinstance(network, PretrainedNetwork):
        return (x > 0) | (torch.arange(x.shape[1], device=x.device) == 0) if x.dim() == 2 else None
    steps = next((module for module in network.modules() if isinstance(module, StepEmbedding)), None)
    return None if steps is None else steps.step_mask(x)
