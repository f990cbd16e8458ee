"""The weights that training begins with, found before the run, so that they count in the stage's key."""

from __future__ import annotations

from pathlib import Path

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import DataMissing, RecipeInvalid
from bloomery.data_contracts.records.records import InitialWeights
from bloomery.models.training.config import StartFrom
from bloomery.tasks.infrastructure.settings import settings

WEIGHTS = "weights.safetensors"


def locate_initial_weights(start: StartFrom | None) -> InitialWeights | None:
    """The weights that `start` names now: those of a folder, or of a registered version.

    Raises:
        DataMissing: there are none.
        RecipeInvalid: the version came trained, as an ONNX file.
    """
    if start is None:
        return None
    if start.is_folder:
        name = start.network
        uri = str((Path(name).expanduser() / WEIGHTS).absolute())
    else:
        name, uri = _registered(start.network)
    path = settings().path(uri)
    if not path.is_file():
        raise DataMissing(
            f"the weights of {name} are not there",
            required="a file of weights",
            where=str(path),
            remedy="mend training.start_from.network in the recipe: a version that was trained in this state folder "
            "(`bloomery show` lists them), or a folder with `weights.safetensors`",
        )
    if path.suffix == ".onnx":
        raise RecipeInvalid(
            f"{name} is an imported network, which has no weights by name",
            required="a network that was trained here",
            where="training.start_from in the recipe",
            remedy="name another version, or train the network where it came from",
        )
    _require_weights(path)
    return InitialWeights(uri=uri, name=name, digest=digest_of_file(path))


def _registered(reference: str) -> tuple[str, str]:
    """The version by its number, and where its weights lie."""
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
            f"the weights that training begins with cannot be read: {failure}",
            required="tensors by name, as safetensors",
            where=str(path),
            remedy="write the file again, or mend training.start_from.network in the recipe",
        ) from failure
