"""Untrained networks of Hugging Face `transformers`, from a configuration.

Shapes: B rows, T tokens, C channels, H height, W width, K outputs.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.config import HuggingFace
from bloomery.models.networks.transformers_body import silenced
from bloomery.models.networks.transformers_package import missing_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_WHERE = "model in the recipe"
# Configuration keys that follow from the rows, so a recipe must not set them.
_KEYS_OF_ROWS = {"tokens": ("vocab_size", "num_labels"), "image": ("num_channels", "image_size", "num_labels")}


class TokenClassifier(nn.Module):
    """x float32 (B, T), token ids with 0 as padding -> float32 (B, K)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.pad_token: int = model.config.pad_token_id

    def forward(self, x_BT: torch.Tensor) -> torch.Tensor:
        ids_BT = x_BT.long()
        is_real_BT = ids_BT != 0
        # The first step is always attended to, so that rows of only padding do not divide by 0.
        is_first_T = torch.arange(x_BT.shape[1], device=x_BT.device) == 0
        mask_BT = (is_real_BT | is_first_T).long()
        if self.pad_token:
            # Rows use 0 for padding, so token 0 and the padding token of the vocabulary are exchanged.
            ids_BT = torch.where(ids_BT == 0, self.pad_token, torch.where(ids_BT == self.pad_token, 0, ids_BT))
        return self.model(input_ids=ids_BT, attention_mask=mask_BT).logits


class ImageClassifier(nn.Module):
    """x float32 (B, C, H, W) -> float32 (B, K)."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=x_BCHW).logits


def build(config: HuggingFace, layout: Layout, num_outputs: int) -> nn.Module:
    """Builds the network untrained.

    Raises:
        EngineMissing: `transformers` is not installed.
        RecipeInvalid: it has no such network for these rows.
    """
    if layout.kind not in _KEYS_OF_ROWS:
        raise _unsuitable(f"the rows are {layout.kind}", "text or images, for a network of Hugging Face")
    try:
        import transformers
    except ImportError as failure:
        raise missing_transformers("huggingface") from failure
    with silenced():
        options = _build_configuration(config, layout, num_outputs)
        family = (
            transformers.AutoModelForSequenceClassification
            if layout.kind == "tokens"
            else transformers.AutoModelForImageClassification
        )
        try:
            model = family.from_config(options)
        except (ValueError, TypeError, ImportError, KeyError, OSError) as failure:
            raise _unsuitable(
                f"{options.model_type} cannot be built: {(str(failure).splitlines() or ['no reason given'])[0][:300]}",
                f"a model_type that classifies {'text' if layout.kind == 'tokens' else 'images'}, with valid sizes",
            ) from failure
    _require_length(model.config, layout)
    return (TokenClassifier(model) if layout.kind == "tokens" else ImageClassifier(model)).train()


def _build_configuration(config: HuggingFace, layout: Layout, num_outputs: int) -> PretrainedConfig:
    from transformers import AutoConfig

    options: dict[str, Any] = dict(config.config)
    kind = options.pop("model_type")
    try:
        known_keys = set(AutoConfig.for_model(kind).to_dict()) | set(AutoConfig.for_model(kind).attribute_map)
    except ValueError as failure:
        raise _unsuitable(
            f"transformers has no model_type {kind!r}", "a model_type of transformers, such as bert, gpt2 or vit"
        ) from failure
    for name in options:
        _require_known(name, known_keys, kind, layout)
    options |= _row_options(layout, known_keys)
    options["num_labels"] = num_outputs
    configuration = AutoConfig.for_model(kind, **options)
    if layout.kind == "tokens":
        _require_vocabulary(configuration, layout)
    return configuration


def _require_known(name: str, known_keys: set[str], kind: str, layout: Layout) -> None:
    if name in _KEYS_OF_ROWS[layout.kind]:
        raise _unsuitable(f"model.config sets {name}", "no key that follows from the rows and the label")
    if name not in known_keys:
        similar = difflib.get_close_matches(name, sorted(known_keys), n=1)
        suggestion = f"; did you mean {similar[0]!r}?" if similar else ""
        raise _unsuitable(f"the configuration of {kind} has no {name!r}{suggestion}", "keys of this configuration")


def _row_options(layout: Layout, known_keys: set[str]) -> dict[str, Any]:
    if layout.kind == "tokens":
        return {"vocab_size": layout.num_tokens, "pad_token_id": 0}
    channels, height, width = layout.shape
    return {"num_channels": channels} | ({"image_size": (height, width)} if "image_size" in known_keys else {})


def _require_vocabulary(configuration: PretrainedConfig, layout: Layout) -> None:
    if configuration.pad_token_id is None:
        configuration.pad_token_id = 0
    if layout.num_tokens is None or layout.num_tokens > configuration.vocab_size:
        raise _unsuitable(
            f"the configuration has {configuration.vocab_size} tokens",
            f"at least {layout.num_tokens}, as the rows have",
        )


def _require_length(configuration: PretrainedConfig, layout: Layout) -> None:
    max_positions = getattr(configuration, "max_position_embeddings", None)
    if layout.kind == "tokens" and max_positions is not None and max_positions < layout.shape[0]:
        raise _unsuitable(
            f"{configuration.model_type} has {max_positions} positions",
            f"at least {layout.shape[0]}, the text's `length`",
        )


def _unsuitable(problem: str, required: str) -> RecipeInvalid:
    return RecipeInvalid(
        problem, required=required, where=_WHERE, remedy="correct the recipe's `model`; see docs/bring-your-own.md"
    )
