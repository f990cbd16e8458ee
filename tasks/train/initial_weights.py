"""Locates the weights that training starts from before the run, so that they are part of the stage's key."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bloomery.data_contracts.documents.digests import digest_of_document, digest_of_file
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.records import InitialWeights
from bloomery.models.training.transfer_config import StartFrom
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.train.weight_names import find_source

WEIGHTS_FILE = "weights.safetensors"
_WEIGHT_NAMES = (WEIGHTS_FILE, "model.safetensors")
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")

if TYPE_CHECKING:
    import torch


def locate_initial_weights(start: StartFrom | None) -> InitialWeights | None:
    """The weights that `start` refers to now: in a folder, or of a registered version.

    Raises:
        DataMissing: the weights do not exist or cannot be read.
        RecipeInvalid: the version is an imported ONNX network, or boosted trees.
    """
    if start is None:
        return None
    if start.is_folder:
        name = start.network
        path = _find_weights(Path(name).expanduser().absolute())
        uri, names_uri = str(path), str(path if path.is_dir() else path.parent)
    else:
        name, uri, names_uri = _find_registered_weights(start.network)
    path = settings().path(uri)
    if not path.exists():
        raise _missing_weights(name, path)
    if path.suffix == ".onnx":
        raise RecipeInvalid(
            f"{name} is an imported network or has boosted trees, so it has no named weights",
            required="a network that Bloomery has trained",
            where="training.start_from in the recipe",
            remedy="name a version of another kind, or leave `start_from` out",
        )
    files = weight_files(path)
    for file in files:
        _require_weights(file)
    digests = {file.name: digest_of_file(file) for file in files}
    digest = digest_of_document(digests) if path.is_dir() else digests[path.name]
    source = find_source(names_uri) if {"vocabulary", "outputs"} & {*start.adapt} else None
    return InitialWeights(uri=uri, name=name, source=source, digest=digest)


def weight_files(path: Path) -> list[Path]:
    """The file with weights, or those of a folder with weights in several files."""
    return [path] if not path.is_dir() else sorted(path.glob("model-*-of-*.safetensors"))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights of all files, sorted by name: the order of a file's names varies."""
    from safetensors.torch import load_file

    weights = {name: tensor for file in weight_files(path) for name, tensor in load_file(file).items()}
    return {name: weights[name] for name in sorted(weights)}


def _find_weights(folder: Path) -> Path:
    """The file with weights in `folder`; the folder itself if they are in several files.

    Raises:
        RecipeInvalid: there are only pickled weights, or several files of which none has the usual name.
    """
    for name in _WEIGHT_NAMES:
        if (folder / name).is_file():
            return folder / name
    if weight_files(folder) if folder.is_dir() else ():
        return folder
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
    if pickled and not files:
        raise RecipeInvalid(
            f"{folder} has pickled weights only: {', '.join(pickled[:3])}",
            required="weights in safetensors format: loading a pickle would run code from the file",
            where="training.start_from.network in the recipe",
            remedy="convert them where you trust the file: `torch.load(path, weights_only=True)`, then "
            "`safetensors.torch.save_file(tensors, 'weights.safetensors')`",
        )
    if files:
        raise RecipeInvalid(
            f"{folder} has several files with weights: {', '.join(path.name for path in files[:5])}",
            required=f"one of them, or one with the name {' or '.join(_WEIGHT_NAMES)}",
            where="training.start_from.network in the recipe",
            remedy="copy the one to start from into a folder of its own",
        )
    return folder / WEIGHTS_FILE


def _missing_weights(name: str, path: Path) -> DataMissing:
    return DataMissing(
        f"there are no weights of {name}",
        required="a file with weights",
        where=str(path),
        remedy="set training.start_from.network in the recipe to a version that was trained in this state folder "
        "(`bloomery show` lists them), or to a folder with `weights.safetensors`",
    )


def _find_registered_weights(reference: str) -> tuple[str, str, str]:
    """The version with its number, and the uris of its weights and of its encoder."""
    from bloomery.tasks.registry import model_registry

    version = model_registry.find_version(reference)
    name = f"{version.name}:{version.version}"
    return name, version.tags.get("weights.uri", f"no weights of {name}"), version.tags.get("encoder.uri", "")


def _require_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            pass
    except (SafetensorError, OSError) as failure:
        raise DataMissing(
            f"the initial weights cannot be read: {failure}",
            required="named tensors in safetensors format",
            where=str(path),
            remedy="write the file again, or change training.start_from.network in the recipe",
        ) from failure
