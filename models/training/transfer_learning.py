"""Transfer learning: initial weights of another network, whose names, classes, channels or tokens may differ.

Shapes: S rows of the source's weight, O rows of this network's, C channels.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.networks.architectures.token_bag import TokenBagNetwork
from bloomery.models.training.layer_freezing import layer_groups
from bloomery.models.training.transfer_config import StartFrom

_WHERE = "the recipe's training.start_from"
# Names of embeddings of positions and segments, not of tokens. There may be more positions than tokens.
_OTHER_EMBEDDING = re.compile(r"(^|\.)(places|wpe|\w*position\w*|\w*type\w*)$")


class TransferResult(NamedTuple):
    """What became of the weights, by name. `mapped` are names of the source to those of this network."""

    loaded: tuple[str, ...]
    initialised: tuple[str, ...]
    mapped: dict[str, str]
    adapted: dict[str, str]  # how weights of another shape were loaded
    unused: tuple[str, ...]  # of the source


class Names(NamedTuple):
    """The tokens and classes of a network, in the order of the rows of its weights; "" or () where unknown.

    The rows of ordered classes are those of `name_thresholds`.
    """

    tokens: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()


def name_thresholds(classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the rows of a head with an output between each two neighbours of ordered classes."""
    return tuple(f"{lower} < {higher}" for lower, higher in itertools.pairwise(classes))


UNKNOWN = Names()


class _Row(NamedTuple):
    """The row of this network's weight, and the equal one of the source's."""

    own: int
    source: int


def transfer_weights(
    network: nn.Module,
    weights: Mapping[str, torch.Tensor],
    start: StartFrom,
    names: Names = UNKNOWN,
    source_names: Names = UNKNOWN,
) -> TransferResult:
    """Loads weights into `network`: those of equal or mapped names with equal or adapted shapes.

    Raises:
        RecipeInvalid: no weight matches; a rule or a prefix matches no weight; or a mapped weight does not fit.
    """
    targets, mapped = _map_names(weights, start)
    own_weights = network.state_dict()
    adapter = _Adapter(network, start, names, source_names)
    loaded: dict[str, torch.Tensor] = {}
    for source_name, name in targets.items():
        weight = weights[source_name]
        if name in own_weights and (tensor := adapter.fit(name, own_weights[name], weight)) is not None:
            loaded[name] = tensor
        elif source_name in mapped:
            raise _unfitting(source_name, name, weight, own_weights)
    if not any(name in dict(network.named_parameters()) for name in loaded):
        examples = ", ".join(f"{name} {list(weight.shape)}" for name, weight in list(own_weights.items())[:3])
        raise RecipeInvalid(
            f"none of the {len(weights)} weights of {start.network} matches a weight of this network in name and shape",
            required=f"weights such as {examples}",
            where=_WHERE,
            remedy="start from a network of the same kind and widths, or write a `mapping` of names",
        )
    network.load_state_dict(loaded, strict=False)
    return TransferResult(
        loaded=tuple(name for name in own_weights if name in loaded),
        initialised=tuple(name for name in own_weights if name not in loaded),
        mapped={source_name: name for source_name, name in mapped.items() if name != source_name},
        adapted=adapter.adapted,
        unused=tuple(name for name in weights if targets.get(name) not in loaded),
    )


def _map_names(weights: Mapping[str, torch.Tensor], start: StartFrom) -> tuple[dict[str, str], dict[str, str]]:
    """The name of this network for each weight that is not dropped, and those of weights that a rule matches."""
    unmatched = {*start.drop, *start.mapping}
    targets: dict[str, str] = {}
    mapped: dict[str, str] = {}
    for name in weights:
        dropped = {prefix for prefix in start.drop if _has_prefix(name, prefix)}
        unmatched -= dropped
        if dropped:
            continue
        targets[name] = name
        for rule, target in start.mapping.items():
            if (renamed := _rename(name, rule, target)) is not None:
                unmatched.discard(rule)
                targets[name] = mapped[name] = renamed
                break
    if unmatched:
        children = ", ".join(dict.fromkeys(name.split(".")[0] for name in weights))
        raise RecipeInvalid(
            f"{', '.join(map(repr, sorted(unmatched)))}: no weight of {start.network} has such a name, or an earlier "
            "rule matches it",
            required=f"prefixes of its names, which begin with {children}; for example {next(iter(weights), 'none')}",
            where=f"{_WHERE}.mapping and drop",
            remedy="correct or remove the rule",
        )
    duplicates = sorted(name for name, number in Counter(targets.values()).items() if number > 1)
    if duplicates:
        sources = ", ".join(source for source, name in targets.items() if name == duplicates[0])
        raise RecipeInvalid(
            f"several weights of {start.network} have the name {duplicates[0]}: {sources}",
            required="one weight for each name",
            where=f"{_WHERE}.mapping",
            remedy="drop all but one of them",
        )
    return targets, mapped


def _has_prefix(name: str, prefix: str) -> bool:
    prefix = prefix.removesuffix(".")
    return name == prefix or name.startswith(f"{prefix}.")


def _rename(name: str, rule: str, target: str) -> str | None:
    """The new name, or None if the rule does not match. An empty target removes a prefix, an empty rule adds one."""
    if rule.startswith("^"):
        return re.sub(rule, target, name, count=1) if re.match(rule, name) else None
    rule, target = rule.removesuffix("."), target.removesuffix(".")
    if rule and not _has_prefix(name, rule):
        return None
    remainder = name.removeprefix(rule).removeprefix(".")
    return ".".join(part for part in (target, remainder) if part)


def _unfitting(
    source_name: str, name: str, weight: torch.Tensor, own_weights: Mapping[str, torch.Tensor]
) -> RecipeInvalid:
    if name not in own_weights:
        problem = f"{source_name} is mapped to {name}, which this network does not have"
        required = f"a name of this network, such as {', '.join(list(own_weights)[:3])}"
    else:
        problem = f"{source_name} is mapped to {name}, but has the shape {list(weight.shape)}"
        required = f"the shape {list(own_weights[name].shape)}"
    return RecipeInvalid(
        problem,
        required=required,
        where=f"{_WHERE}.mapping",
        remedy="correct the rule, drop the weight, or adapt `channels`, `vocabulary` or `outputs`",
    )


class _Adapter:
    """Fits weights to the shapes of a network, as far as the recipe says so."""

    def __init__(self, network: nn.Module, start: StartFrom, names: Names, source_names: Names) -> None:
        self._start, self._names, self._source_names = start, names, source_names
        self._heads = set(layer_groups(network)[-1])
        self._embeddings = {
            f"{name}.weight"
            for name, module in network.named_modules()
            if isinstance(module, nn.Embedding) and not _OTHER_EMBEDDING.search(name)
        }
        self._importances = {
            f"{name}.importances_V".removeprefix(".")
            for name, module in network.named_modules()
            if isinstance(module, TokenBagNetwork)
        }
        for adaptation, own, source in (
            ("vocabulary", names.tokens, source_names.tokens),
            ("outputs", names.classes, source_names.classes),
        ):
            if adaptation in start.adapt and not (own and source):
                raise _unknown_names(adaptation, start, is_source=bool(own))
        self.adapted: dict[str, str] = {}

    def fit(self, name: str, own: torch.Tensor, weight: torch.Tensor) -> torch.Tensor | None:
        """The weight in the shape of `own`; None if it does not fit."""
        adapt = self._start.adapt
        if "vocabulary" in adapt and name in self._embeddings and self._has_rows(own, weight, "tokens"):
            return self._copy_rows(name, own, weight, "tokens")
        if "outputs" in adapt and name in self._heads and self._has_rows(own, weight, "classes"):
            return self._copy_rows(name, own, weight, "classes")
        if "vocabulary" in adapt and name in self._importances:
            return None  # those of this network's training rows stay: the source's belong to other tokens and pairs
        if own.shape == weight.shape:
            return weight
        is_other_channels = own.dim() == 4 == weight.dim() and own.shape[::2] == weight.shape[::2]
        if "channels" in adapt and is_other_channels and own.shape[3] == weight.shape[3]:
            num_source, num_own = weight.shape[1], own.shape[1]
            self.adapted[name] = f"the mean over {num_source} channels for each of {num_own}"
            # Scaled so that channels of equal values give the same responses as before.
            return (weight.float().mean(1, keepdim=True) * (num_source / num_own)).to(own.dtype).expand_as(own).clone()
        return None

    def _has_rows(self, own: torch.Tensor, weight: torch.Tensor, kind: str) -> bool:
        return (
            own.dim() == weight.dim() > 0
            and own.shape[1:] == weight.shape[1:]
            and len(own) >= len(getattr(self._names, kind)) > 0
            and len(weight) >= len(getattr(self._source_names, kind)) > 0
        )

    def _copy_rows(self, name: str, own: torch.Tensor, weight: torch.Tensor, kind: str) -> torch.Tensor:
        rows = _equal_rows(getattr(self._names, kind), getattr(self._source_names, kind))
        adapted = own.clone()
        if rows:
            adapted[[row.own for row in rows]] = weight[[row.source for row in rows]].to(own.dtype)
        self.adapted[name] = f"{len(rows)} of {len(own)} rows, of equal {kind}"
        return adapted


def _equal_rows(names: Sequence[str], source_names: Sequence[str]) -> list[_Row]:
    positions = {name: position for position, name in enumerate(source_names)}
    return [_Row(number, positions[name]) for number, name in enumerate(names) if name and name in positions]


def _unknown_names(adaptation: str, start: StartFrom, *, is_source: bool) -> RecipeInvalid:
    noun, task, file = "classes", "a model with classes", "config.json with `id2label`"
    if adaptation == "vocabulary":
        noun, task, file = "vocabulary, or several", "a model of texts with one vocabulary", "tokenizer.json"
    if not is_source:
        return RecipeInvalid(
            f"`adapt: [{adaptation}]`, but this network has no {noun}",
            required=task,
            where=f"{_WHERE}.adapt",
            remedy=f"leave {adaptation} out",
        )
    return RecipeInvalid(
        f"`adapt: [{adaptation}]`, but the source {start.network} has no known {noun}",
        required=f"a registered version of {task}, or a folder with encoder.json or {file} beside the weights",
        where=f"{_WHERE}.adapt",
        remedy=f"start from such a source, or leave {adaptation} out",
    )
