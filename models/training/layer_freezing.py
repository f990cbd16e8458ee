"""The layers of a network: which parameters are frozen, and each layer's fraction of the learning rate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.networks.architectures import pretrained
from bloomery.models.networks.architectures.fused import FusedNetwork
from bloomery.models.training.transfer_config import Freeze

# Children that are as wide as the outputs: they belong to the task, not to what is transferred.
_HEADS = ("head", "wide", "highway")
_LISTS = ("blocks", "layers", "layer", "block", "h")  # names of lists of layers


def layer_groups(network: nn.Module) -> list[list[str]]:
    """Names of parameters: of the embeddings (may be empty), of each layer, and of the head.

    Layers are the elements of the network's list of blocks or layers; norms, which have no matrix, belong to the layer
    before them. What is before the list are the embeddings. In a network without a list, each child is a layer.

    In a network of branches, layers of equal depth are one layer. If branches are pretrained, only they have layers;
    the others and the join count as the head.
    """
    if isinstance(network, pretrained.PretrainedNetwork):
        return pretrained.layer_groups(network)
    if isinstance(network, FusedNetwork):
        return _groups_of_branches(network)
    parameters = dict(network.named_parameters())
    heads = [name for name in parameters if name.split(".")[0] in _HEADS]
    names = [name for name in parameters if name.split(".")[0] not in _HEADS]
    list_name = _find_list(names)
    if list_name is None:
        return [[], *_names_of_children(names).values(), heads]
    is_inside = [name.startswith(f"{list_name}.") for name in names]
    first, last = is_inside.index(True), len(names) - is_inside[::-1].index(True)
    layers: list[list[str]] = []
    depth = list_name.count(".") + 1
    for element in _group(names[first:last], lambda name: name.split(".")[depth]):
        if layers and all(parameters[name].dim() == 1 for name in element):
            layers[-1] += element
        else:
            layers.append(element)
    layers[-1] += names[last:]
    return [names[:first], *layers, heads]


def _groups_of_branches(network: FusedNetwork) -> list[list[str]]:
    is_pretrained = [isinstance(branch, pretrained.PretrainedNetwork) for branch in network.branches]
    groups_of_branches = [
        [[f"branches.{number}.{name}" for name in group] for group in layer_groups(branch)[:-1]]
        for number, branch in enumerate(network.branches)
        if is_pretrained[number] or not any(is_pretrained)
    ]
    groups = [
        [name for parts in depth for name in parts]
        for depth in itertools.zip_longest(*groups_of_branches, fillvalue=[])
    ]
    inner_names = {name for group in groups for name in group}
    return [*groups, [name for name, _ in network.named_parameters() if name not in inner_names]]


def freeze_parameters(network: nn.Module, freeze: Freeze) -> None:
    """Freezes parameters: by prefixes of names, `embeddings`, `body` (all but the head), or embeddings and N layers.

    Raises:
        RecipeInvalid: `freeze` matches no parameter, or freezes every parameter.
    """
    parameters = dict(network.named_parameters())
    for name in _frozen_names(network, freeze, tuple(parameters)):
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise _invalid_freeze("every parameter is frozen", "at least one trainable parameter", "do not freeze the head")


def frozen_modules(network: nn.Module) -> list[nn.Module]:
    """Modules with frozen parameters only. They stay in evaluation mode, as batch normalisation needs."""
    return [
        module
        for module in network.modules()
        if (own_weights := list(module.parameters())) and not any(parameter.requires_grad for parameter in own_weights)
    ]


def rate_shares(network: nn.Module, discount: float) -> dict[str, float]:
    """Learning rates by parameter, as fractions of the recipe's: each layer's is `discount` times the next layer's.

    So general features change least. A layer is a child of the network, or an element of a list among its children;
    those of pretrained networks and of branches are the groups of `layer_groups`.

    Source: Howard & Ruder 2018, "Universal Language Model Fine-tuning for Text Classification", section 3.2.
    """
    all_names = [name for name, _ in network.named_parameters()]
    layers: list[list[str]] = []
    if isinstance(network, pretrained.PretrainedNetwork | FusedNetwork):
        layers, all_names = [group for group in layer_groups(network) if group], []  # an embedding may have no head
    for child, names in _names_of_children(all_names).items():
        is_list = all(name.removeprefix(f"{child}.").split(".")[0].isdigit() for name in names)
        layers += _group(names, lambda name: name.split(".")[1]) if is_list else [names]
    return {name: discount ** (len(layers) - 1 - position) for position, names in enumerate(layers) for name in names}


def _frozen_names(network: nn.Module, freeze: Freeze, names: tuple[str, ...]) -> Iterable[str]:
    """The names of the parameters that `freeze` describes."""
    if isinstance(freeze, int):
        embeddings, *layers, _ = layer_groups(network)
        if freeze > len(layers):
            raise _invalid_freeze(
                f"{freeze} layers are to be frozen, but the network has {len(layers)}",
                f"at most {len(layers)}",
                "lower the number, or write `body` to freeze all but the head",
            )
        return [*embeddings, *(name for layer in layers[:freeze] for name in layer)]
    return [name for prefix in freeze for name in _names_of_prefix(network, prefix, names)]


def _names_of_prefix(network: nn.Module, prefix: str, names: tuple[str, ...]) -> list[str]:
    """The parameters of a prefix, or of the groups `embeddings` and `body` if no child has that name."""
    matching_names = [name for name in names if name == prefix or name.startswith(f"{prefix}.")]
    if not matching_names and prefix in ("embeddings", "body"):
        groups = layer_groups(network)
        matching_names = [name for group in groups[: 1 if prefix == "embeddings" else -1] for name in group]
    if prefix == "body" and len(matching_names) == len(names):
        raise _invalid_freeze(
            "the network has no head, so `body` is all of it, and nothing would be trained",
            "a number of layers, or prefixes of names",
            "freeze fewer layers; to take a checkpoint as it is, write `epochs: 0` and leave `freeze` out",
        )
    if not matching_names:
        children = ", ".join(_names_of_children(names))
        raise _invalid_freeze(
            "the network has no embeddings" if prefix == "embeddings" else f"no parameter name begins with {prefix!r}",
            f"`body`, a number of layers, one of {children}, or a longer prefix such as {names[0]}",
            "correct the prefix",
        )
    return matching_names


def _invalid_freeze(problem: str, required: str, remedy: str) -> RecipeInvalid:
    return RecipeInvalid(problem, required=required, where="the recipe's training.freeze", remedy=remedy)


def _find_list(names: Sequence[str]) -> str | None:
    """The name of the list of layers: the first that is called so, or the first list; None without a list."""
    lists = [
        ".".join(parts[:position])
        for parts in (name.split(".") for name in names)
        if (position := next((number for number, part in enumerate(parts) if part.isdigit()), 0))
    ]
    return next((name for name in lists if name.split(".")[-1] in _LISTS), lists[0] if lists else None)


def _names_of_children(names: Sequence[str]) -> dict[str, list[str]]:
    """The names of the parameters of each child of the network, in their order."""
    return {group[0].split(".")[0]: group for group in _group(names, lambda name: name.split(".")[0])}


def _group(names: Sequence[str], key: Callable[[str], str]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(key(name), []).append(name)
    return list(groups.values())
