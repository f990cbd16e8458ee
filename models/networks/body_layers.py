"""The layers of a `transformers` network, and their sizes after compression.

Shapes: D width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from bloomery.models.networks.body_families import FAMILIES, LayerNames
from bloomery.models.networks.layers.trimmed_embedding import TrimmedEmbedding
from bloomery.models.networks.pruned_shape import PrunedShape

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LinearMaps(NamedTuple):
    """The linear maps of a layer: attention, then the feed-forward part."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    up: nn.Linear
    down: nn.Linear


def list_layers(body: nn.Module, names: LayerNames) -> nn.ModuleList:
    layers = body.get_submodule(names.layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


def linear_maps(layer: nn.Module, names: LayerNames) -> LinearMaps:
    return LinearMaps(*(layer.get_submodule(getattr(names, field)) for field in LinearMaps._fields))  # type: ignore[arg-type]


def head_width(body: PreTrainedModel) -> int:
    """D, which pruning does not change."""
    return int(body.config.hidden_size // body.config.num_attention_heads)


def measure_shape(body: PreTrainedModel) -> PrunedShape:
    """The shape that `body` has, whether it is pruned or not."""
    names = FAMILIES[body.config.model_type]
    maps = [linear_maps(layer, names) for layer in list_layers(body, names)]
    embedding, positions = body.get_input_embeddings(), find_position_table(body)
    return PrunedShape(
        heads=tuple(layer.query.out_features // head_width(body) for layer in maps),
        units=tuple(layer.up.out_features for layer in maps),
        num_positions=None if positions is None else positions[1].num_embeddings,
        num_tokens=embedding.entries.num_embeddings if isinstance(embedding, TrimmedEmbedding) else None,
    )


def reshape_body(body: PreTrainedModel, shape: PrunedShape) -> None:
    """Give an untrained `body` the layers of `shape`, in place. Layers of other sizes get new weights."""
    names = FAMILIES[body.config.model_type]
    layers = list_layers(body, names)
    keep_layers(body, range(len(shape.heads)))
    states_width, width = body.config.hidden_size, head_width(body)
    for layer, num_heads, num_units in zip(layers, shape.heads, shape.units, strict=True):
        for projection in (names.query, names.key, names.value):
            _resize(layer, projection, states_width, num_heads * width)
        _resize(layer, names.out, num_heads * width, states_width)
        _resize(layer, names.up, states_width, num_units)
        _resize(layer, names.down, num_units, states_width)
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


def _resize(layer: nn.Module, name: str, num_inputs: int, num_outputs: int) -> None:
    current = layer.get_submodule(name)
    assert isinstance(current, nn.Linear)
    if (current.in_features, current.out_features) != (num_inputs, num_outputs):
        layer.set_submodule(name, nn.Linear(num_inputs, num_outputs, bias=current.bias is not None))
