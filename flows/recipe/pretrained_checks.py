"""Checks that a pretrained network suits the features, by its config.json alone: nothing is imported or loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bloomery.models.features.config import Features
from bloomery.models.features.input_config import AudioInput, ImageInput, Input, TextInput
from bloomery.models.networks.config import Model
from bloomery.models.networks.pretrained_config import ANY_SIZE, PADDING_SENSITIVE, RANDOM_STATES, Pretrained
from bloomery.tasks.checkpoints.input_checkpoints import find_network
from bloomery.tasks.checkpoints.modality import num_positions, readable_form, several_networks


def check_pretrained(source: Input, model: Pretrained, place: str = "model") -> Iterator[str]:
    """Yields problems of a pretrained network that cannot read the encoded rows of an input."""
    config = model.config
    if isinstance(source, TextInput) and source.tokenizer != "checkpoint":
        yield (
            f"features.inputs: tokenizer {source.tokenizer} numbers the tokens of column {source.column!r} in another "
            f"way than {model.checkpoint}; set `tokenizer: checkpoint`, and leave out `vocabulary_size` and `lowercase`"
        )
    if config is None:  # a student, whose checkpoint is not resolved yet
        return
    model_type = config.get("model_type")
    where = f"{place}.checkpoint: {model.checkpoint} is a {model_type}, which"
    parts = several_networks(config)
    if parts:
        yield f"{where} consists of several networks ({', '.join(parts)}); name a checkpoint of one network"
        return
    form = readable_form(config)
    if form != source.kind:
        yield f"{where} reads {form}, but an input of kind {source.kind} is not; name a checkpoint for {source.kind}"
    elif form == "text" and config.get("is_encoder_decoder"):
        yield f"{where} consists of an encoder and a decoder; name one of them alone, such as a bert or a gpt2"
    elif model_type in RANDOM_STATES:
        yield f"{where} leaves out random parts of each row; name a checkpoint of another network"
    elif form == "text" and model_type in PADDING_SENSITIVE:
        yield f"{where} computes other states for a row with padding; name a checkpoint of a network such as bert"
    elif isinstance(source, TextInput):
        yield from _check_length(source, config, where)
    else:
        yield from _check_pooling(model, config)
    if form == "image" and isinstance(source, ImageInput):
        yield from _check_size(source, config, where)


def check_checkpoint_inputs(features: Features, model: Model) -> Iterator[str]:
    """Yields inputs that need a checkpoint's tokenizer or preprocessing, where the network that reads them has none."""
    for number, source in enumerate(features.inputs):
        if isinstance(source, TextInput) and source.tokenizer == "checkpoint":
            need, remedy = "the tokenizer", "learn the tokens: `tokenizer: byte_pairs`"
        elif isinstance(source, ImageInput | AudioInput) and source.preprocessing == "checkpoint":
            need, remedy = "the preprocessing", "leave `preprocessing` out"
        else:
            continue
        network = find_network(features, model, number)
        if not isinstance(network, Pretrained):
            kind = "a branch that the recipe does not name" if network is None else f"a network of kind {network.kind}"
            yield (
                f"features.inputs: column {source.column!r} needs {need} of a checkpoint, but {kind} has none; "
                f"use a network `{{kind: pretrained, checkpoint: …}}`, or {remedy}"
            )


def _check_length(text: TextInput, config: dict[str, Any], where: str) -> Iterator[str]:
    positions = num_positions(config)
    if positions is not None and text.length > positions:
        yield f"{where} has {positions} positions, but `length` of the text is {text.length}; lower it"


def _check_pooling(model: Pretrained, config: dict[str, Any]) -> Iterator[str]:
    """Yields a pooling that a network for images or audio does not have."""
    if model.pooling == "last" or (model.pooling == "cls" and "depths" in config):
        order = "first" if model.pooling == "cls" else "last"
        yield f"model.pooling: {config.get('model_type')} has no {order} token that has seen the others; use auto"


def _check_size(image: ImageInput, config: dict[str, Any], where: str) -> Iterator[str]:
    channels, *size = image.input_shape
    remedy = "set `preprocessing: checkpoint`"
    expected = config.get("num_channels", channels)
    if channels != expected:
        yield f"{where} reads {expected} channels, but an encoded image has {channels}; {remedy}"
    sides = config.get("image_size")
    sides = [sides, sides] if isinstance(sides, int) else sides
    is_fixed = "depths" not in config and config.get("model_type") not in ANY_SIZE
    if is_fixed and isinstance(sides, list) and sides != size:
        yield f"{where} reads {sides[0]} x {sides[1]} pixels, but an encoded image has {size[0]} x {size[1]}; {remedy}"
