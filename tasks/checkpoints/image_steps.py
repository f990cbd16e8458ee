"""The image preprocessing that a checkpoint's preprocessor_config.json states."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import PREPROCESSOR_FILE, Checkpoint
from bloomery.models.features.checkpoint_images import ImageSteps
from bloomery.models.features.image_input import ImageInput
from bloomery.models.networks.pretrained_config import ANY_SIZE
from bloomery.tasks.checkpoints.json_files import read_object

_HALF, _IMAGENET = ([0.5] * 3, [0.5] * 3), ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
_OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_SQUARE, _SHORTEST = {"height": 224, "width": 224}, {"shortest_edge": 224}
# The image processors of `transformers` that do no more than these steps, with the defaults of their classes: size,
# filter, size of the crop (None: not cropped), mean and deviation.
_DEFAULTS: dict[str, tuple[dict[str, int], int, dict[str, int] | None, tuple[list[float], list[float]]]] = {
    "ViT": (_SQUARE, 2, None, _HALF),
    "DeiT": ({"height": 256, "width": 256}, 3, _SQUARE, _HALF),
    "Beit": (_SQUARE, 3, None, _HALF),
    "CLIP": (_SHORTEST, 3, _SQUARE, _OPENAI),
    "Siglip": (_SQUARE, 3, None, _HALF),
    "ConvNext": ({"shortest_edge": 384}, 3, None, _HALF),
    "Bit": (_SHORTEST, 3, _SQUARE, _OPENAI),
    "Pvt": (_SQUARE, 3, None, _IMAGENET),
    "Segformer": ({"height": 512, "width": 512}, 2, None, _IMAGENET),
    "MobileNetV1": ({"shortest_edge": 256}, 2, _SQUARE, _HALF),
    "MobileNetV2": ({"shortest_edge": 256}, 2, _SQUARE, _HALF),
}
# By the model_type of checkpoints whose file names no processor.
_BY_MODEL = {"deit": "DeiT", "beit": "Beit", "clip_vision_model": "CLIP", "siglip_vision_model": "Siglip"}
_BY_MODEL |= dict.fromkeys(("convnext", "convnextv2", "resnet", "regnet", "cvt"), "ConvNext")
_BY_MODEL |= dict.fromkeys(("vit", "swin", "swinv2", "vit_msn", "vit_mae", "ijepa"), "ViT")
_BY_MODEL |= dict.fromkeys((*ANY_SIZE, "bit", "hiera", "focalnet"), "Bit")
_SUFFIXES = ("FeatureExtractor", "ImageProcessorFast", "ImageProcessorPil", "ImageProcessor")
_UNSUPPORTED = ("do_pad", "do_flip_channel_order", "rescale_offset", "auto_map")


def read_image_steps(checkpoint: Checkpoint, config: dict[str, Any], source: ImageInput) -> ImageSteps:
    """Returns the steps of `checkpoint`, whose network has the configuration `config`, for an input.

    Raises:
        DataMissing: there is no preprocessor_config.json.
        RecipeInvalid: it has other steps, or the network does not read what they give.
    """
    steps = parse_image_steps(checkpoint, config)
    if source.resize is not None:
        steps = steps.model_copy(update={"size": source.resize, "crop": None})
    _require_readable(checkpoint, steps, config, source)
    return steps


def parse_image_steps(checkpoint: Checkpoint, config: dict[str, Any]) -> ImageSteps:
    """Returns the steps for any input. Raises as `read_image_steps`."""
    if PREPROCESSOR_FILE not in checkpoint.files:
        raise DataMissing(
            f"the checkpoint {checkpoint.reference} has no {PREPROCESSOR_FILE}",
            required=f"{PREPROCESSOR_FILE}, as an image processor of `transformers` writes it with save_pretrained",
            where=checkpoint.folder,
            remedy="copy it into the folder, or leave `preprocessing` out and set `resize` and `normalise`",
        )
    options = read_object(checkpoint.path(PREPROCESSOR_FILE), "model.checkpoint")
    name = _find_processor(options, config)
    refused = [key for key in _UNSUPPORTED if options.get(key)]
    if name not in _DEFAULTS or refused:
        problem = f"has {refused[0]}" if refused else f"is one of {name or 'an unnamed processor'}"
        raise _unsuitable(
            checkpoint,
            f"the image preprocessing of {checkpoint.reference} {problem}, which is not supported",
            f"a processor of {', '.join(_DEFAULTS)} that resizes, crops, rescales and normalises",
            "leave `preprocessing` out, and set `resize` and `normalise`",
        )
    channels = config.get("num_channels", 3)
    try:
        return _parse(name, options, channels)
    except (ValidationError, TypeError, ValueError, KeyError, ZeroDivisionError) as failure:
        raise _unsuitable(
            checkpoint,
            f"{PREPROCESSOR_FILE} has an invalid value: {' '.join(str(failure).split())[:200]}",
            "sizes in pixels, numbers, and a mean and a deviation per channel",
            "copy, download or save it again",
        ) from failure


def _find_processor(options: dict[str, Any], config: dict[str, Any]) -> str:
    stated = str(options.get("image_processor_type") or options.get("feature_extractor_type") or "")
    for suffix in _SUFFIXES:
        if stated.endswith(suffix):
            return stated.removesuffix(suffix)
    return stated or _BY_MODEL.get(str(config.get("model_type")), "")


def _parse(name: str, options: dict[str, Any], channels: int) -> ImageSteps:
    default_size, default_filter, default_crop, (default_mean, default_deviation) = _DEFAULTS[name]
    is_square = "height" in default_size and name != "Siglip"
    size: Any = None
    if _flag(options, "do_resize", True):
        size = _parse_size(options.get("size") or default_size, is_square=is_square)
    crop: Any = None
    if _flag(options, "do_center_crop", default_crop is not None):
        crop = _parse_size(options.get("crop_size") or default_crop, is_square=True)
        if not isinstance(crop, tuple) or None in crop:
            raise ValueError("do_center_crop without the height and width of crop_size")
    if name == "ConvNext" and size is not None:
        if not isinstance(size, int) or crop is not None:
            raise ValueError("ConvNext has a size `shortest_edge` and no crop")
        if size < 384:
            size, crop = int(size / (options.get("crop_pct") or 224 / 256)), (size, size)
        else:
            size = (size, size)
    filter_number = options.get("resample")
    factor = options.get("rescale_factor")
    is_normalised = _flag(options, "do_normalize", True)
    return ImageSteps(
        size=size,
        resample=default_filter if filter_number is None else filter_number,
        crop=crop,
        factor=(1 / 255 if factor is None else factor) if _flag(options, "do_rescale", True) else None,
        mean=_per_channel(options.get("image_mean") or default_mean, channels) if is_normalised else None,
        deviation=_per_channel(options.get("image_std") or default_deviation, channels) if is_normalised else None,
        channels=channels,
    )


def _flag(options: dict[str, Any], name: str, default: bool) -> bool:
    value = options.get(name)
    return default if value is None else bool(value)


def _parse_size(size: Any, *, is_square: bool) -> Any:
    """Height and width, or the length of the shorter edge. Older files have one number or a list."""
    if isinstance(size, dict):
        if set(size) == {"shortest_edge"}:
            return size["shortest_edge"]
        if set(size) == {"height", "width"}:
            return (size["height"], size["width"])
        raise ValueError(f"size with {', '.join(map(str, size))}")
    if isinstance(size, list):
        return tuple(size)
    return (size, size) if is_square else size


def _per_channel(values: Any, channels: int) -> tuple[float, ...]:
    numbers = (values,) * channels if isinstance(values, int | float) else tuple(values)
    if len(numbers) != channels:
        raise ValueError(f"{len(numbers)} values for {channels} channels")
    return numbers


def _require_readable(checkpoint: Checkpoint, steps: ImageSteps, config: dict[str, Any], source: ImageInput) -> None:
    if source.shape[0] not in (1, steps.channels):
        raise _unsuitable(
            checkpoint,
            f"column {source.column} has {source.shape[0]} channels, but the network reads {steps.channels}",
            "images with the channels of the network, or grey ones",
            "correct `shape` in `features.inputs`, or name another checkpoint",
        )
    height, width = steps.output_shape(source.shape)[1:]
    side = config.get("image_size")
    has_patches = "patch_size" in config and "depths" not in config  # stages read images of any size
    is_fixed = has_patches and isinstance(side, int) and config.get("model_type") not in ANY_SIZE
    if is_fixed and source.resize is not None and (height, width) != (side, side):
        raise _unsuitable(
            checkpoint,
            f"`resize` gives images of {height}x{width} pixels, but the network reads {side}x{side}",
            "images of the network's size",
            "leave `resize` out, or name a network for images of any size, such as a resnet",
        )
    if is_fixed and (height, width) != (side, side):
        raise _unsuitable(
            checkpoint,
            f"the preprocessing gives images of {height}x{width} pixels, but the network reads {side}x{side}",
            "a preprocessing for this network",
            f"correct `size` in {PREPROCESSOR_FILE}, or name another checkpoint",
        )


def _unsuitable(checkpoint: Checkpoint, problem: str, required: str, remedy: str) -> RecipeInvalid:
    return RecipeInvalid(problem, required=required, where=str(checkpoint.path(PREPROCESSOR_FILE)), remedy=remedy)
