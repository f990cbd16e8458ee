"""The JSON files of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid

_MAX_BYTES = 50_000_000  # of a configuration; a tokenizer has at most a few tens of MB


def read_object(path: Path, key: str) -> dict[str, Any]:
    """Returns the JSON object in the file `path`. `key` is where the recipe names the checkpoint.

    Raises:
        DataMissing: the file does not exist or cannot be read.
        RecipeInvalid: it is not a JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as failure:
        if not path.is_file():
            raise missing_file(path, key) from failure
        raise DataMissing(
            f"{path.name} of the checkpoint cannot be read: {failure.strerror}",
            required="a file that this user can read",
            where=str(path),
            remedy="correct its permissions",
        ) from failure
    try:
        document: Any = json.loads(content.decode("utf-8")) if len(content) <= _MAX_BYTES else None
        problem = "is no JSON object"
    except (ValueError, RecursionError) as failure:
        document, problem = None, f"is not JSON: {failure}"
    if not isinstance(document, dict):
        raise RecipeInvalid(
            f"{path.name} of the checkpoint {problem}",
            required="a JSON object as `transformers` writes it with save_pretrained",
            where=str(path),
            remedy="copy, download or save the checkpoint again",
        )
    return document


def missing_file(path: Path, key: str) -> DataMissing:
    """The error of a checkpoint without the file `path`."""
    folder = path.parent
    problem = (
        f"the checkpoint has no {path.name}" if folder.is_dir() else f"the checkpoint's folder {folder} does not exist"
    )
    if folder.is_file():
        problem = f"the checkpoint {folder} is a file"
    return DataMissing(
        problem,
        required="a folder with config.json and model.safetensors, as `transformers` writes it with save_pretrained",
        where=f"{key} in the recipe: {folder}",
        remedy="correct the name; relative paths start at the recipe's folder, and others are `package:NAME` or "
        "`hf://org/name`",
    )
