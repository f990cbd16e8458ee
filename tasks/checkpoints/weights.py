"""The weights of a checkpoint: safetensors alone, whose headers are checked."""

from __future__ import annotations

from pathlib import Path

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.checkpoint import WEIGHTS_FILE, WEIGHTS_INDEX
from bloomery.tasks.checkpoints.json_files import missing_file, read_object

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_OTHER_FRAMEWORKS = (".h5", ".msgpack", ".gguf", ".onnx")
_ADAPTER = "adapter_config.json"


def find_weights(folder: Path, key: str) -> tuple[str, ...]:
    """Returns the names of the files with weights, in order; each has a valid header and its full length.

    Raises:
        DataMissing: there are none, or one of several is missing.
        RecipeInvalid: they are damaged, in another format, or those of an adapter.
    """
    if (folder / WEIGHTS_FILE).is_file():
        names: tuple[str, ...] = (WEIGHTS_FILE,)
    elif (folder / WEIGHTS_INDEX).is_file():
        names = _read_index(folder, key)
    else:
        _explain_other_files(folder)
        raise missing_file(folder / WEIGHTS_FILE, key)
    _refuse_embedded_adapter(folder)
    for name in names:
        if not (folder / name).is_file():
            raise missing_file(folder / name, key)
        _require_complete(folder / name)
    return names


def _read_index(folder: Path, key: str) -> tuple[str, ...]:
    weight_map = read_object(folder / WEIGHTS_INDEX, key).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise RecipeInvalid(
            f"{WEIGHTS_INDEX} names no files of safetensors beside it",
            required="a `weight_map` from names of weights to files, as `transformers` writes it",
            where=str(folder / WEIGHTS_INDEX),
            remedy="download or save the checkpoint again",
        )
    return tuple(names)


def _require_complete(path: Path) -> None:
    """Raises RecipeInvalid unless the header is valid and describes the length of the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as weights:
            is_empty = not weights.keys()
        problem = "has no weights" if is_empty else ""
    except (SafetensorError, OSError) as failure:
        problem = f"is damaged: {failure}"
    if problem:
        raise RecipeInvalid(
            f"{path.name} of the checkpoint {problem}",
            required="a complete file of safetensors",
            where=str(path),
            remedy="copy, download or save the checkpoint again",
        )


def _refuse_embedded_adapter(folder: Path) -> None:
    """Raises RecipeInvalid if `transformers` would change the weights, and only where `peft` is installed."""
    if (folder / _ADAPTER).is_file():
        raise RecipeInvalid(
            f"{folder.name} has an adapter beside its weights (it has {_ADAPTER})",
            required="weights alone",
            where=str(folder),
            remedy="merge the adapter into the weights by peft's merge_and_unload(), and save them with "
            f"save_pretrained; or name a copy of the folder without {_ADAPTER}, to take the weights alone",
        )


def _explain_other_files(folder: Path) -> None:
    """Raises RecipeInvalid if the folder has weights in a format that is not read."""
    if not folder.is_dir():
        return
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    convert = (
        "if you trust its author, convert it: "
        "`python -c \"from transformers import AutoModel as M; M.from_pretrained('FOLDER').save_pretrained('NEW')\"`, "
        "and copy tokenizer and preprocessor files to NEW"
    )
    if _ADAPTER in names:
        raise RecipeInvalid(
            f"{folder.name} is an adapter (it has {_ADAPTER}), not a complete checkpoint",
            required=WEIGHTS_FILE,
            where=str(folder),
            remedy="merge it into its base model by peft's merge_and_unload(), and save that with save_pretrained",
        )
    pickled = [name for name in names if name.endswith(_PICKLED)]
    if pickled:
        raise RecipeInvalid(
            f"the checkpoint has only {', '.join(pickled[:3])}: pickled weights, which can execute code and are never "
            "loaded",
            required=WEIGHTS_FILE,
            where=str(folder),
            remedy=convert,
        )
    matches = [name for name in names if name.endswith((*_OTHER_FRAMEWORKS, ".safetensors"))]
    if matches:
        raise RecipeInvalid(
            f"the checkpoint has its weights in {', '.join(matches[:3])}",
            required=f"{WEIGHTS_FILE}, or {WEIGHTS_INDEX} with the files that it names",
            where=str(folder),
            remedy="load it with transformers and save it with save_pretrained, which writes model.safetensors",
        )
