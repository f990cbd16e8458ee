"""The layers of a `transformers` network, and their sizes after compression.

Shapes: D width of a head.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from torch import nn

from bloomery.models.networks.body_families import FAMILIES, STAGED_FAMILIES, LayerNames
from bloomery.models.networks.layers.trimmed_embedding import TrimmedEmbedding
from bloomery.models.networks.pruned_shape import PrunedShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WeightedMap: TypeAlias = nn.Linear | nn.Conv2d


class LinearMaps(NamedTuple):
    """The linear maps of a layer: attention, then the feed-forward part."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    up: nn.Linear
    down: nn.Linear


class UnitNames(NamedTuple):
    """The names of the map that writes some units, of their normalisation, and of the map that reads them."""

    writer: str
    norm: str | None
    reader: str


def list_layers(body: nn.Module, names: LayerNames) -> nn.ModuleList:
    layers = body.get_submodule(names.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def linear_maps(layer: nn.Module, names: LayerNames) -> LinearMaps:
    return LinearMaps(*(layer.get_submodule(getattr(names, field)) for field in LinearMaps._fields))  # type: ignore[arg-type]


def list_units(body: PreTrainedModel) -> list[UnitNames]:
    """The names of each group of units in `body`: feed-forward units of a layer, or channels inside a block."""
    family = body.config.model_type
    if family in FAMILIES:
        names = FAMILIES[family]
        prefixes = (f"{names.layers}.{number}" for number in range(len(list_layers(body, names))))
        return [UnitNames(f"{prefix}.{names.up}", None, f"{prefix}.{names.down}") for prefix in prefixes]
    staged = STAGED_FAMILIES[family]
    existing = {name for name, _ in body.named_modules()}
    groups = []
    for stage, _ in body.get_submodule(staged.stages).named_children():
        blocks = f"{staged.stages}.{stage}.{staged.blocks}"
        for block, _ in body.get_submodule(blocks).named_children():
            maps = [name for name in (f"{blocks}.{block}.{path}" for path in staged.maps) if name in existing]
            for writer, reader in itertools.pairwise(maps):
                norm = None if staged.norm is None else f"{writer.rpartition('.')[0]}.{staged.norm}"
                groups.append(UnitNames(writer, norm, reader))
    return groups


def get_map(body: nn.Module, name: str) -> WeightedMap:
    module = body.get_submodule(name)
    assert isinstance(module, nn.Linear | nn.Conv2d)
    return module


def get_norm(body: nn.Module, name: str) -> nn.BatchNorm2d:
    module = body.get_submodule(name)
    assert isinstance(module, nn.BatchNorm2d)
    return module


def head_width(body: PreTrainedModel) -> int:
    """D, which pruning does not change."""
    width = getattr(body.config, "head_dim", None)
    return int(width or body.config.hidden_size // body.config.num_attention_heads)


def measure_shape(body: PreTrainedModel) -> PrunedShape:
    """The shape that `body` has, whether it is pruned or not."""
    names = FAMILIES.get(body.config.model_type)
    maps = [] if names is None else [linear_maps(layer, names) for layer in list_layers(body, names)]
    positions = find_position_table(body)
    trimmed = next((module for module in body.modules() if isinstance(module, TrimmedEmbedding)), None)
    return PrunedShape(
        heads=tuple(layer.query.out_features // head_width(body) for layer in maps),
        units=tuple(len(get_map(body, group.writer).weight) for group in list_units(body)),
        num_positions=None if positions is None else positions[1].num_embeddings,
        num_tokens=None if trimmed is None else trimmed.entries.num_embeddings,
    )


def reshape_body(body: PreTrainedModel, shape: PrunedShape) -> None:
    """Give an untrained `body` the layers of `shape`, in place. Layers of other sizes get new weights."""
    if shape.heads:
        names, width = FAMILIES[body.config.model_type], head_width(body)
        keep_layers(body, range(len(shape.heads)))
        for layer, num_heads in zip(list_layers(body, names), shape.heads, strict=True):
            for projection in (names.query, names.key, names.value):
                _resize(layer, projection, num_outputs=num_heads * width)
            _resize(layer, names.out, num_inputs=num_heads * width)
    for group, num_units in zip(list_units(body), shape.units, strict=True):
        _resize(body, group.writer, num_outputs=num_units)
        if group.norm is not None:
            body.set_submodule(group.norm, nn.BatchNorm2d(num_units))
        _resize(body, group.reader, num_inputs=num_units)
    if shape.num_positions is not None:
        keep_positions(body, shape.num_positions)
    if shape.num_tokens is not None:
        entries = body.get_input_embeddings()
        body.set_input_embeddings(
            TrimmedEmbedding(entries.num_embeddings, shape.num_tokens, entries.embedding_dim)  # type: ignore[arg-type]
        )


def keep_layers(body: PreTrainedModel, positions: range | list[int]) -> None:
    """Remove all other layers in place."""
    layers = list_layers(body, FAMILIES[body.config.model_type])
    for number in reversed(range(len(layers))):
        if number not in positions:
            del layers[number]
    body.config.num_hidden_layers = len(layers)


def find_position_table(body: nn.Module) -> tuple[str, nn.Embedding] | None:
    """The name and the table of learnt positions; None where a network has none."""
    tables = (
        (name, module)
        for name, module in body.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    )
    return next(tables, None)


def keep_positions(body: PreTrainedModel, num_positions: int) -> None:
    """Keep the first rows of the table of positions, in place."""
    entry = find_position_table(body)
    if entry is None or entry[1].num_embeddings <= num_positions:
        return
    name, table = entry
    shorter = nn.Embedding(num_positions, table.embedding_dim, padding_idx=table.padding_idx)
    shorter.weight.data.copy_(table.weight.data[:num_positions])
    body.set_submodule(name, shorter)
    body.config.max_position_embeddings = num_positions


def _resize(parent: nn.Module, name: str, *, num_inputs: int | None = None, num_outputs: int | None = None) -> None:
    """Replace a map by one with another number of inputs or outputs, if it has not that number already."""
    current = get_map(parent, name)
    sizes = list(current.weight.shape[1::-1])
    if num_inputs in (None, sizes[0]) and num_outputs in (None, sizes[1]):
        return
    num_inputs, num_outputs = num_inputs or sizes[0], num_outputs or sizes[1]
    has_bias = current.bias is not None
    if isinstance(current, nn.Linear):
        parent.set_submodule(name, nn.Linear(num_inputs, num_outputs, bias=has_bias))
        return
    parent.set_submodule(
        name,
        nn.Conv2d(num_inputs, num_outputs, current.kernel_size, current.stride, current.padding, bias=has_bias),  # type: ignore[arg-type]
    )
