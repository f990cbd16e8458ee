"""How sentence-transformers computes the vector of a text with a checkpoint: text changes, pooling, other modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import (
    CONFIG_FILE,
    MODULES_FILE,
    POOLING_FILE,
    PREPROCESSOR_FILE,
    PROMPTS_FILE,
    TEXTS_FILE,
    TOKENIZER_FILE,
    Checkpoint,
)
from bloomery.tasks.checkpoints.hub import is_partly_known, repository_of
from bloomery.tasks.checkpoints.json_files import read_object, read_objects

_KEY = "model.checkpoint"
_PREFIX = "pooling_mode_"  # of a key with true or false for each pooling; newer files have one key with a name
# Our names of the poolings in 1_Pooling/config.json.
_POOLINGS = {"cls_token": "cls", "cls": "cls", "mean_tokens": "mean", "mean": "mean", "lasttoken": "last"}
# Modules that need no layers beside the network: cosines do not depend on the length of a vector.
_KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")
_CASED = "The Museum of BERLIN"


def read_pooling(checkpoint: Checkpoint) -> str | None:
    """The pooling that a checkpoint of sentence-transformers was trained with; None if it states none.

    Raises:
        DataMissing: whether it states one is unknown, because other programs have put its files into the cache.
        RecipeInvalid: it is another one than mean, cls and last, or a combination.
    """
    if TOKENIZER_FILE not in checkpoint.files and PREPROCESSOR_FILE in checkpoint.files:  # no network for text
        return None
    path = _find_pooling_file(checkpoint)
    if path is None:
        return None
    stated = _read_modes(read_object(path, _KEY))
    if len(stated) == 1 and stated[0] in _POOLINGS:
        return _POOLINGS[stated[0]]
    raise RecipeInvalid(
        f"the checkpoint {checkpoint.reference} pools by {' and '.join(stated) or 'nothing'}",
        required="one of mean, cls and last",
        where=str(path),
        remedy="set `pooling` of the network to one of them: its vectors then differ from those of the checkpoint; or "
        "name another checkpoint",
    )


def find_other_modules(folder: Path) -> tuple[str, ...]:
    """The modules of sentence-transformers in `folder` that change a pooled vector, and that a network lacks."""
    if not (folder / MODULES_FILE).is_file():
        return ()
    names = (_module_name(module) for module in read_objects(folder / MODULES_FILE, _KEY))
    return tuple(name for name in names if name not in _KNOWN_MODULES)


def find_default_prompt(folder: Path) -> str:
    """What sentence-transformers puts before each text, unless its caller names another prompt; often empty."""
    if not (folder / PROMPTS_FILE).is_file():
        return ""
    options = read_object(folder / PROMPTS_FILE, _KEY)
    prompts, name = options.get("prompts"), options.get("default_prompt_name")
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    return prompt if isinstance(prompt, str) else ""


def lowers_case(folder: Path) -> bool:
    """Whether sentence-transformers writes texts in lower case, and the tokenizer alone does not."""
    from tokenizers import Tokenizer

    is_lowered = (folder / TEXTS_FILE).is_file() and read_object(folder / TEXTS_FILE, _KEY).get("do_lower_case") is True
    if not is_lowered or not (folder / TOKENIZER_FILE).is_file():
        return False
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    return bool(tokenizer.encode(_CASED).ids != tokenizer.encode(_CASED.lower()).ids)


def _find_pooling_file(checkpoint: Checkpoint) -> Path | None:
    folder = Path(checkpoint.folder)
    if not (folder / MODULES_FILE).is_file():
        if POOLING_FILE in checkpoint.files:
            return checkpoint.path(POOLING_FILE)
        if is_partly_known(folder):
            raise _unknown_pooling(checkpoint)
        return None
    modules = read_objects(folder / MODULES_FILE, _KEY)
    paths = [str(module.get("path", "")) for module in modules if _module_name(module) == "Pooling"]
    if not paths:
        names = ", ".join(map(_module_name, modules)) or "no module"
        raise RecipeInvalid(
            f"the checkpoint {checkpoint.reference} computes vectors by {names}, without a pooling that is supported",
            required="a module Pooling, or the `pooling` of the network in the recipe",
            where=str(folder / MODULES_FILE),
            remedy="set `pooling` of the network to mean, cls or last",
        )
    path = folder / Path(paths[0]).name / CONFIG_FILE
    if not path.is_file() and is_partly_known(folder):
        raise _unknown_pooling(checkpoint)
    if not path.is_file():
        raise DataMissing(
            f"{MODULES_FILE} of the checkpoint {checkpoint.reference} names a pooling whose {CONFIG_FILE} is missing",
            required="the file with the pooling, or the network's `pooling` in the recipe",
            where=str(path),
            remedy="copy or download the checkpoint again, or set `pooling` to mean, cls or last",
        )
    return path


def _module_name(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _read_modes(options: dict[str, Any]) -> list[str]:
    """The names of the poolings whose vectors are put together."""
    named = options.get("pooling_mode")
    if named is not None:
        return [str(name) for name in named] if isinstance(named, list) else str(named).split("+")
    modes = [key.removeprefix(_PREFIX) for key, value in options.items() if key.startswith(_PREFIX) and value is True]
    has_modes = any(key.startswith(_PREFIX) for key in options)
    return modes if has_modes else ["mean_tokens"]  # the default of sentence-transformers


def _unknown_pooling(checkpoint: Checkpoint) -> DataMissing:
    folder = Path(checkpoint.folder)
    return DataMissing(
        f"the local cache may have only some files of {checkpoint.reference}, so its pooling is unknown",
        required=f"{MODULES_FILE} and {POOLING_FILE} if the hub has them, or the network's `pooling` in the recipe",
        where=checkpoint.folder,
        remedy=f"run `hf download {repository_of(folder)} --revision {folder.name}` where there is a network, or set "
        "`pooling` to mean, cls or last",
    )
