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
    document = _read_json(path, key)
    if not isinstance(document, dict):
        raise _invalid(path, "is no JSON object", "a JSON object as `transformers` writes it with save_pretrained")
    return document


def read_objects(path: Path, key: str) -> list[dict[str, Any]]:
    """Returns the JSON objects of the array in the file `path`.

    Raises:
        DataMissing, RecipeInvalid: as `read_object`, for an array of objects.
    """
    document = _read_json(path, key)
    if not isinstance(document, list) or not all(isinstance(entry, dict) for entry in document):
        raise _invalid(path, "is no array of JSON objects", "a JSON array as `sentence-transformers` writes it")
    return document


def _read_json(path: Path, key: str) -> Any:
    """The document in a file; None if it is too large to be a configuration."""
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
        return json.loads(content.decode("utf-8")) if len(content) <= _MAX_BYTES else None
    except (ValueError, RecursionError) as failure:
        required = "a JSON object as `transformers` writes it with save_pretrained"
        raise _invalid(path, f"is not JSON: {failure}", required) from failure


def _invalid(path: Path, problem: str, required: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"{path.name} of the checkpoint {problem}",
        required=required,
        where=str(path),
        remedy="copy, download or save the checkpoint again",
    )


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
