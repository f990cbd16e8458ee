"""What a checkpoint's network reads, by its config.json alone."""

from __future__ import annotations

from typing import Any, Literal

Form = Literal["text", "image", "audio"]

# Keys of config.json by which networks for images and for audio differ from those for text.
_IMAGE_KEYS = ("image_size", "num_channels", "patch_size")
_AUDIO_KEYS = ("num_mel_bins", "conv_dim")
# Networks that number positions from the one after the padding token's.
_OFFSET_POSITIONS = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")


def readable_form(config: dict[str, Any]) -> Form:
    """Returns the kind of input that a network with this config.json reads."""
    if any(key in config for key in _AUDIO_KEYS):
        return "audio"
    return "image" if any(key in config for key in _IMAGE_KEYS) else "text"


def several_networks(config: dict[str, Any]) -> tuple[str, ...]:
    """Returns the parts of a checkpoint that has networks for texts and for images; empty of others."""
    parts = tuple(key for key, value in config.items() if key.endswith("_config") and isinstance(value, dict))
    return parts if {"text_config", "vision_config"} <= set(parts) else ()


def num_positions(config: dict[str, Any]) -> int | None:
    """Returns how many tokens a network for text reads at most; None where its config.json states no limit."""
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if not isinstance(positions, int) or positions < 1:
        return None
    if config.get("model_type") in _OFFSET_POSITIONS:
        positions -= int(config.get("pad_token_id") or 0) + 1
    return positions
