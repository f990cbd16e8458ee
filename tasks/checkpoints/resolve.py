"""Finds the checkpoint that a recipe names and checks its files, before any time is spent on training.

No code of a checkpoint is executed and no pickle is loaded: JSON and safetensors alone are read.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.checkpoint import (
    CONFIG_FILE,
    POOLING_FILE,
    PREPROCESSOR_FILE,
    TOKENIZER_FILES,
    WEIGHTS_FILE,
    WEIGHTS_INDEX,
    Checkpoint,
)
from bloomery.tasks.checkpoints.card import read_card
from bloomery.tasks.checkpoints.file_digests import digest_files
from bloomery.tasks.checkpoints.hub import HUB_PREFIX, find_snapshot, is_hub_name
from bloomery.tasks.checkpoints.json_files import read_object
from bloomery.tasks.checkpoints.packages import PACKAGE_PREFIX, find_in_package
from bloomery.tasks.checkpoints.weights import find_weights

# Files beside config.json and the weights that some checkpoints have. The pooling is that of sentence-transformers.
_OPTIONAL_FILES = (*TOKENIZER_FILES, PREPROCESSOR_FILE, POOLING_FILE)


class Location(NamedTuple):
    """Where a reference leads: an existing folder, and the revision of its content if it has one."""

    folder: Path
    revision: str | None = None
    licence: str | None = None


def resolve_checkpoint(reference: str, recipe_folder: Path, key: str = "model.checkpoint") -> Checkpoint:
    """Returns the checkpoint with the digest of each file. Relative paths start at `recipe_folder`.

    Args:
        reference: a folder, `package:NAME`, `hf://org/name@revision`, or `org/name` in the local cache.
        recipe_folder: the folder of the recipe.
        key: where the reference stands in the recipe, for errors.

    Raises:
        DataMissing: the folder or a file of it does not exist, or cannot be downloaded.
        EngineMissing: the package is not installed.
        RecipeInvalid: a file is damaged, the weights are pickled, or the checkpoint needs code of its own.
    """
    location = _locate(reference, recipe_folder, key)
    folder = location.folder
    config = read_object(folder / CONFIG_FILE, key)
    _refuse_code(config, folder / CONFIG_FILE)
    if not isinstance(config.get("model_type"), str):
        raise RecipeInvalid(
            f"{CONFIG_FILE} names no model_type",
            required="a JSON object as `transformers` writes it with save_pretrained",
            where=str(folder / CONFIG_FILE),
            remedy="save the checkpoint again with a current version of transformers",
        )
    weights = find_weights(folder, key)
    index = (WEIGHTS_INDEX,) if weights != (WEIGHTS_FILE,) else ()
    optional = (name for name in _OPTIONAL_FILES if (folder / name).is_file())
    card = read_card(folder)
    return Checkpoint(
        reference=reference,
        revision=location.revision,
        folder=str(folder),
        files=digest_files(folder, (CONFIG_FILE, *index, *weights, *optional)),
        licence=card.licence or location.licence,
        card=card.excerpt,
    )


def _locate(reference: str, recipe_folder: Path, key: str) -> Location:
    if reference.startswith(PACKAGE_PREFIX):
        package = find_in_package(reference, key)
        return Location(package.folder, package.revision, package.licence)
    folder = (recipe_folder / Path(reference).expanduser()).resolve()
    if reference.startswith(HUB_PREFIX) or (is_hub_name(reference) and not folder.exists()):
        snapshot = find_snapshot(reference, key)
        if snapshot is not None:
            return Location(snapshot.folder, snapshot.commit)
    return Location(folder)


def _refuse_code(config: dict[str, object], path: Path) -> None:
    """Raises RecipeInvalid if a configuration names classes that are not part of `transformers`."""
    if config.get("auto_map"):
        raise RecipeInvalid(
            f"{path.name} names code of its own (auto_map: {config['auto_map']}), which is never executed",
            required="an architecture that `transformers` contains",
            where=str(path),
            remedy="use another checkpoint; if transformers contains its model_type, delete auto_map from a copy",
        )
