"""Locates the weights that training starts from before the run, so that they are part of the stage's key."""

from __future__ import annotations

from pathlib import Path

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.records import InitialWeights
from bloomery.models.training.transfer_config import StartFrom
from bloomery.tasks.infrastructure.settings import settings

WEIGHTS_FILE = "weights.safetensors"


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
        uri = str((Path(name).expanduser() / WEIGHTS_FILE).absolute())
    else:
        name, uri = _find_registered_weights(start.network)
    path = settings().path(uri)
    if not path.is_file():
        raise DataMissing(
            f"there are no weights of {name}",
            required="a file with weights",
            where=str(path),
            remedy="set training.start_from.network in the recipe to a version that was trained in this state folder "
            "(`bloomery show` lists them), or to a folder with `weights.safetensors`",
        )
    if path.suffix == ".onnx":
        raise RecipeInvalid(
            f"{name} is an imported network or has boosted trees, so it has no named weights",
            required="a network that Bloomery has trained",
            where="training.start_from in the recipe",
            remedy="name a version of another kind, or leave `start_from` out",
        )
    _require_weights(path)
    return InitialWeights(uri=uri, name=name, digest=digest_of_file(path))


def _find_registered_weights(reference: str) -> tuple[str, str]:
    """The version with its number, and the uri of its weights."""
    from bloomery.tasks.registry import model_registry

    version = model_registry.find_version(reference)
    name = f"{version.name}:{version.version}"
    return name, version.tags.get("weights.uri", f"no weights of {name}")


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
