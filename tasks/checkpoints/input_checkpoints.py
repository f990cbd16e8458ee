"""What the inputs of a recipe take from a checkpoint: its tokenizer or preprocessing, checked before any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import (
    CONFIG_FILE,
    TOKENIZER_FILE,
    TOKENIZER_FILES,
    WEIGHTS_INDEX,
    Checkpoint,
)
from bloomery.models.features.checkpoint_tokenizer import find_separator
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import AudioInput, ImageInput, Input, TextInput
from bloomery.models.networks.config import Fused, Model
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.audio_steps import read_audio_steps
from bloomery.tasks.checkpoints.file_digests import require_unchanged
from bloomery.tasks.checkpoints.image_steps import read_image_steps
from bloomery.tasks.checkpoints.json_files import read_object

_TOKENIZER_CONFIG = "tokenizer_config.json"
_SLOW_FILES = ("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model")


def add_input_checkpoints(features: Features, model: Model) -> Features:
    """Returns the features with the tokenizer's files, or the steps of preprocessing, of the network's checkpoint.

    Other weights of the same tokenizer do not change the features.

    Raises:
        DataMissing: the checkpoint has no tokenizer, or only files from which `transformers` could build one.
        RecipeInvalid: the tokenizer is damaged, needs code of its own, or does not suit the network or the `length`.
    """
    inputs = tuple(
        _add_checkpoint(source, find_network(features, model, number)) for number, source in enumerate(features.inputs)
    )
    return features.model_copy(update={"inputs": inputs})


def find_network(features: Features, model: Model, number: int) -> Model | None:
    """The network that reads the input at this position: a branch of a fused network, or the network itself.

    None is a branch that the recipe does not name.
    """
    if not isinstance(model, Fused):
        return model
    part = next(name for name, numbers in features.part_inputs.items() if number in numbers)
    return (model.branches or {}).get(part)


def find_checkpoints(model: Model) -> tuple[Checkpoint, ...]:
    """The checkpoints that a network and its branches start from, without their paths, each once."""
    return tuple({entry.digest: entry.without_folder() for entry in _resolved_checkpoints(model)}.values())


def require_unchanged_weights(model: Model) -> None:
    """Raises OutputCorrupt if weights, or config.json, of a checkpoint have changed since the recipe was read."""
    for checkpoint in _resolved_checkpoints(model):
        require_unchanged(checkpoint.select((CONFIG_FILE, WEIGHTS_INDEX, *checkpoint.weights)))


def _resolved_checkpoints(model: Model) -> list[Checkpoint]:
    networks = (model.branches or {}).values() if isinstance(model, Fused) else (model,)
    return [network.resolved for network in networks if isinstance(network, Pretrained) and network.resolved]


def _add_checkpoint(source: Input, network: Model | None) -> Input:
    if not isinstance(network, Pretrained) or network.resolved is None or network.config is None:
        return source
    if isinstance(source, TextInput) and source.tokenizer == "checkpoint":
        _require_tokenizer(network.resolved, source, network.config)
        return source.model_copy(update={"checkpoint": network.resolved.select(TOKENIZER_FILES)})
    if isinstance(source, ImageInput) and source.preprocessing == "checkpoint":
        return source.model_copy(update={"steps": read_image_steps(network.resolved, network.config, source)})
    if isinstance(source, AudioInput) and source.preprocessing == "checkpoint":
        return source.model_copy(update={"steps": read_audio_steps(network.resolved, network.config, source)})
    return source


def _require_tokenizer(checkpoint: Checkpoint, source: TextInput, config: dict[str, Any]) -> None:
    if TOKENIZER_FILE not in checkpoint.files:
        raise _missing_tokenizer(checkpoint)
    if _TOKENIZER_CONFIG in checkpoint.files:
        options = read_object(checkpoint.path(_TOKENIZER_CONFIG), "model.checkpoint")
        if options.get("auto_map"):
            raise _unsuitable(
                f"{_TOKENIZER_CONFIG} names code of its own (auto_map: {options['auto_map']}), which is never executed",
                "a tokenizer that `tokenizers` contains",
                checkpoint.path(_TOKENIZER_CONFIG),
                "use another checkpoint; if tokenizer.json is complete by itself, delete auto_map from a copy",
            )
    path = checkpoint.path(TOKENIZER_FILE)
    num_special, num_tokens = _read_tokenizer(path, is_pair=source.pair is not None)
    if source.pair is not None and find_separator(path.read_text(encoding="utf-8")) is None:
        raise _unsuitable(
            f"the tokenizer of {checkpoint.reference} puts no token between two texts",
            "a tokenizer with a template for pairs, such as those of BERT and RoBERTa",
            path,
            "leave out `pair` of the input, or name a checkpoint of a cross-encoder",
        )
    if source.length <= num_special:
        raise _unsuitable(
            f"`length` of column {source.column} is {source.length}, but {num_special} special tokens are added",
            f"a `length` of at least {num_special + 1}",
            path,
            "raise `length` in `features.inputs`",
        )
    vocabulary = config.get("vocab_size")
    if isinstance(vocabulary, int) and num_tokens > vocabulary:
        raise _unsuitable(
            f"the tokenizer has {num_tokens:,} tokens, but the network {vocabulary:,}",
            "a tokenizer and a network of one checkpoint",
            path,
            "copy tokenizer and weights of one checkpoint into the folder",
        )


def _read_tokenizer(path: Path, *, is_pair: bool) -> tuple[int, int]:
    """The number of special tokens that are added to a text or a pair of texts, and of ids."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as failure:  # tokenizers raises nothing more specific
        raise _unsuitable(
            f"{TOKENIZER_FILE} is damaged: {str(failure)[:200]}",
            "a file that `tokenizers` reads",
            path,
            "copy, download or save the tokenizer again",
        ) from failure
    return tokenizer.num_special_tokens_to_add(is_pair), max(tokenizer.get_vocab().values(), default=-1) + 1


def _missing_tokenizer(checkpoint: Checkpoint) -> DataMissing:
    folder = Path(checkpoint.folder)
    slow_files = [name for name in _SLOW_FILES if (folder / name).is_file()]
    convert = (
        "convert a copy: `python -c \"from transformers import AutoTokenizer as T; T.from_pretrained('COPY')"
        ".save_pretrained('COPY')\"`"
    )
    if any(name.endswith(".model") for name in slow_files):
        convert += ", which needs `pip install sentencepiece`"
    problem = f"only {', '.join(slow_files)}, without {TOKENIZER_FILE}" if slow_files else "no tokenizer"
    return DataMissing(
        f"the checkpoint {checkpoint.reference} has {problem}",
        required=f"{TOKENIZER_FILE}, which `tokenizers` reads in training and at the endpoint",
        where=checkpoint.folder,
        remedy=convert if slow_files else "copy the tokenizer's files into the folder, or name another checkpoint",
    )


def _unsuitable(problem: str, required: str, path: Path, remedy: str) -> RecipeInvalid:
    return RecipeInvalid(problem, required=required, where=str(path), remedy=remedy)
