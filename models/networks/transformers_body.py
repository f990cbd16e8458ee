"""The body of a checkpoint of Hugging Face `transformers`: its configuration, its weights, and what rows it reads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.layers.transformers_attention import register_attention
from bloomery.models.networks.pretrained_config import PADDING_SENSITIVE, RANDOM_STATES, Pretrained
from bloomery.models.networks.transformers_package import missing_transformers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_WHERE = "model.checkpoint in the recipe"
# Rows of each kind in a recipe's words, and the inputs of bodies that read them, as `transformers` calls them.
_ROWS = {"tokens": "text", "image": "images or audio"}
_INPUTS = {"tokens": ("input_ids",), "image": ("pixel_values", "input_values", "input_features")}
# Random changes of the input and of the layers in training, some of them by NumPy's generator: a resumed training would
# not end with the same bits.
_RANDOM_OPTIONS = {"apply_spec_augment": False, "layerdrop": 0.0, "encoder_layerdrop": 0.0}
# Weights that no output depends on: vectors of masked steps, which are used in pretraining alone, and layers that a
# family has but does not call.
_MASK_VECTORS = ("masked_spec_embed", "mask_token")
_UNUSED_LAYERS = {"wav2vec2-conformer": "encoder.pos_conv_embed."}
# What constructors of layers raise for sizes that do not fit, and readers of weights for damaged files.
_BUILD_ERRORS = (ValueError, TypeError, ImportError, KeyError, OSError, RuntimeError, AssertionError, AttributeError)
_NUM_SHOWN = 3  # names of weights in an error


def load_body(config: Pretrained, layout: Layout) -> PreTrainedModel:
    """The body in float32 with the checkpoint's weights, or with random ones where `resolved` names no folder.

    Raises:
        EngineMissing: `transformers` is not installed.
        RecipeInvalid: the network does not read such rows, or the checkpoint lacks weights of it.
    """
    _require_transformers()
    with silenced():
        configuration = _read_configuration(config)
        family = _find_family(configuration, layout)
        options: dict[str, Any] = {}
        has_option = "add_pooling_layer" in signature(family.__init__).parameters
        if has_option and not hasattr(configuration, "depths"):  # of Swin it is a mean, which has no weights
            options["add_pooling_layer"] = False  # BERT's second dense layer, which was trained for another task
        folder = None if config.resolved is None else config.resolved.folder or None
        attention = register_attention() if _has_own_attention(family) else "eager"
        try:
            try:
                body = _build_body(family, configuration, folder, options | {"attn_implementation": attention})
            except KeyError as failure:
                if failure.args != (attention,):
                    raise
                # Some layers choose among classes, by the names of the library's own attention.
                body = _build_body(family, configuration, folder, options | {"attn_implementation": "eager"})
            if configuration.is_encoder_decoder:
                body = body.get_encoder()
        except (*_BUILD_ERRORS, SafetensorError) as failure:
            reason = (str(failure).splitlines() or ["no reason given"])[0][:300]
            raise unsuitable(
                f"{configuration.model_type} cannot be built: {reason}",
                "a complete checkpoint of transformers",
            ) from failure
    unused = _UNUSED_LAYERS.get(configuration.model_type)
    for name, parameter in body.named_parameters():
        if name.rpartition(".")[2] in _MASK_VECTORS or (unused is not None and name.startswith(unused)):
            parameter.requires_grad_(False)
    if config.gradient_checkpointing:
        _enable_checkpointing(body)
    return body.train()


def count_positions(body: PreTrainedModel) -> int | None:
    """The largest number of tokens of a row; None if it is not limited."""
    positions = getattr(body.config, "max_position_embeddings", None)
    if positions is None or positions < 0:
        return None
    # RoBERTa and its relatives number positions from the one after the padding token's.
    tables = (module for name, module in body.named_modules() if name.endswith("position_embeddings"))
    first = next((table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None), None)
    return int(positions) if first is None else int(positions) - first - 1


def is_causal(config: Pretrained) -> bool:
    """Whether a token's state depends on the tokens before it only, so that the last one has seen all."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    model_type = (config.config or {}).get("model_type")
    return model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES


@contextmanager
def silenced() -> Iterator[None]:
    """Silences warnings and progress bars of `transformers`, which the recipe's author cannot act on."""
    from transformers import logging

    level, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if has_bars:
            logging.enable_progress_bar()


def unsuitable(problem: str, required: str, remedy: str = "name another checkpoint") -> RecipeInvalid:
    return RecipeInvalid(problem, required=required, where=_WHERE, remedy=f"{remedy}; see docs/networks.md")


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401 - whether it can be imported
    except ImportError as failure:
        raise missing_transformers("pretrained") from failure


def _read_configuration(config: Pretrained) -> PretrainedConfig:
    from transformers import AutoConfig

    if config.config is None:
        raise ValueError("the config of a pretrained network is set when the recipe is read")
    options: dict[str, Any] = dict(config.config)
    model_type = str(options.pop("model_type"))
    for name in ("id2label", "label2id", "num_labels", "architectures", "problem_type", "dtype", "torch_dtype"):
        options.pop(name, None)
    try:
        configuration = AutoConfig.for_model(model_type, **options)
    except (ValueError, TypeError) as failure:
        raise unsuitable(
            f"transformers cannot read config.json of {model_type}: {str(failure).splitlines()[0][:200]}",
            "a model_type of transformers, such as bert or vit",
        ) from failure
    for name, value in (_RANDOM_OPTIONS | {"use_cache": False}).items():  # the cache is that of generation
        if hasattr(configuration, name):
            setattr(configuration, name, value)
    return configuration


def _find_family(configuration: PretrainedConfig, layout: Layout) -> Any:
    """The class of the body, if it reads such rows."""
    from transformers import AutoModel

    model_type, rows = configuration.model_type, _ROWS.get(layout.kind)
    if rows is None:
        raise unsuitable(f"the rows are {layout.kind}", "text, images or audio, for a network of kind pretrained")
    is_split = configuration.is_encoder_decoder and model_type != "whisper"  # whose encoder reads audio alone
    if configuration.sub_configs or is_split:
        parts = "several networks" if configuration.sub_configs else "an encoder and a decoder"
        raise unsuitable(f"{model_type} consists of {parts}", f"one network that encodes {rows}, such as bert")
    try:
        family = AutoModel._model_mapping[type(configuration)]
    except KeyError:
        raise unsuitable(
            f"transformers has no body of model_type {model_type}", f"a network that encodes {rows}"
        ) from None
    if isinstance(family, tuple) or family.main_input_name not in _INPUTS[layout.kind]:
        inputs = "several networks" if isinstance(family, tuple) else family.main_input_name
        raise unsuitable(f"{model_type} reads {inputs}, but the rows are {rows}", f"a network that encodes {rows}")
    if model_type in RANDOM_STATES:
        raise unsuitable(f"{model_type} leaves out random parts of each row", "a network without random changes")
    has_mask = "attention_mask" in signature(family.forward).parameters
    if layout.kind == "tokens" and (model_type in PADDING_SENSITIVE or not has_mask):
        raise unsuitable(
            f"the states of {model_type} depend on the padding of a row",
            "a network whose attention_mask leaves padding out, such as bert",
        )
    return family


def _has_own_attention(family: Any) -> bool:
    """Whether the attention can be replaced by a function: its module looks it up, and PyTorch's gives equal values.

    Attention with a soft cap or with sinks is the library's own ("eager").
    """
    return bool(family._supports_sdpa) and hasattr(sys.modules[family.__module__], "ALL_ATTENTION_FUNCTIONS")


def _build_body(
    family: Any, configuration: PretrainedConfig, folder: str | None, options: dict[str, Any]
) -> PreTrainedModel:
    """The body with the weights in `folder`, or with random ones."""
    if folder is not None:
        return _load_weights(family, configuration, folder, options)
    return family._from_config(configuration, dtype=torch.float32, **options)


def _load_weights(
    family: Any, configuration: PretrainedConfig, folder: str, options: dict[str, Any]
) -> PreTrainedModel:
    """Loads the weights of the body; those of a task's head are left out.

    Raises:
        RecipeInvalid: weights of the body are missing, or have another shape.
    """
    body, loading = family.from_pretrained(
        folder,
        config=configuration,
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        dtype=torch.float32,
        **options,
    )
    missing = sorted(loading["missing_keys"])
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in loading["mismatched_keys"])
    if missing or mismatched:
        names = missing or mismatched
        shown = ", ".join(names[:_NUM_SHOWN]) + (", …" if len(names) > _NUM_SHOWN else "")
        problem = "are not in the checkpoint" if missing else "have other shapes than config.json states"
        raise unsuitable(
            f"{len(names)} weights of {configuration.model_type} {problem}: {shown}",
            "all weights of the network that config.json describes",
            "save the checkpoint again with save_pretrained",
        )
    return body


def _enable_checkpointing(body: PreTrainedModel) -> None:
    if not body.supports_gradient_checkpointing:
        raise RecipeInvalid(
            f"{body.config.model_type} cannot recompute its layers",
            required="a network that supports gradient checkpointing",
            where="model.gradient_checkpointing in the recipe",
            remedy="leave the option out",
        )
    body.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
