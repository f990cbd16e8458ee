"""Reads the tokenizers of checkpoints by `transformers`, which also applies tokenizer_config.json."""

from __future__ import annotations

import json
import sys
from typing import Any

from bloomery.data_contracts.errors import EngineMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import Input, TextInput
from bloomery.tasks.checkpoints.file_digests import require_unchanged


def read_tokenizers(features: Features) -> Features:
    """Returns the features with the tokenizer itself in each text that has one of a checkpoint.

    Raises:
        EngineMissing: `transformers` is not installed.
        OutputCorrupt: a file has changed since the recipe was read.
        RecipeInvalid: `transformers` cannot load the tokenizer, or would execute Python for each text.
    """
    return features.model_copy(update={"inputs": tuple(map(_with_tokenizer, features.inputs))})


def _with_tokenizer(source: Input) -> Input:
    if not isinstance(source, TextInput) or source.checkpoint is None:
        return source
    return source.model_copy(update={"tokenizer_document": _read_tokenizer(source.checkpoint, source.length)})


def _read_tokenizer(checkpoint: Checkpoint, length: int) -> str:
    """The tokenizer that `transformers.AutoTokenizer` loads, as JSON: it truncates to `length` and does not pad."""
    try:
        from transformers import AutoTokenizer
    except ImportError as failure:
        raise EngineMissing(
            "the package transformers is not installed",
            required="transformers, to read the tokenizer of a checkpoint",
            where=sys.prefix,
            remedy="pip install 'bloomery[huggingface]'",
        ) from failure
    require_unchanged(checkpoint)
    try:
        loaded: Any = AutoTokenizer.from_pretrained(checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception as failure:  # of any kind: transformers reads the file by many classes
        raise _unusable(checkpoint, (str(failure).splitlines() or [type(failure).__name__])[0][:300]) from failure
    if not loaded.is_fast:
        raise _unusable(checkpoint, f"{type(loaded).__name__} is written in Python")
    tokenizer = loaded.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.enable_truncation(length, direction=loaded.truncation_side)
    document = json.loads(tokenizer.to_str())
    if "dropout" in document["model"]:
        document["model"]["dropout"] = None  # of merges: texts would be encoded at random
    return json.dumps(document, ensure_ascii=False)


def _unusable(checkpoint: Checkpoint, reason: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"the tokenizer of {checkpoint.reference} cannot be loaded: {reason}",
        required="a tokenizer.json that transformers.AutoTokenizer loads",
        where=checkpoint.folder,
        remedy="save the tokenizer again with save_pretrained, or name another checkpoint",
    )
