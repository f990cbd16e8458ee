"""The weights that training begins with, found before the run, so that they count in the stage's key."""

from __future__ import annotations

from pathlib import Path

from data_contracts.digests import digest_of_file
from data_contracts.errors import DataMissing, RecipeInvalid
from data_contracts.records import Start
from models.training.config import StartFrom
from tasks.settings import settings

WEIGHTS = "weights.safetensors"


def locate_start(start: StartFrom | None) -> Start | None:
    """The weights that `start` names now: those of a folder, or of a registered version.

    Raises:
        DataMissing: there are none.
        RecipeInvalid: the version came trained, as an ONNX file.
    """
    if start is None:
        return None
    folder = Path(start.network).expanduser()
    path = folder / WEIGHTS if folder.is_dir() else _registered(start.network)
    if not path.is_file():
        raise DataMissing(
            f"the weights of {start.network} are not there",
            required="a file of weights",
            where=str(path),
            remedy="name a version that was trained in this state folder, or a folder with `weights.safetensors`",
        )
    if path.suffix == ".onnx":
        raise RecipeInvalid(
            f"{start.network} is an imported network, which has no weights by name",
            required="a network that was trained here",
            where="training.start_from in the recipe",
            remedy="name another version, or train the network where it came from",
        )
    return Start(uri=str(path.absolute()), name=start.network, digest=digest_of_file(path))


def _registered(reference: str) -> Path:
    from tasks import registry

    version = registry.version_of(reference)
    return settings().path(version.tags.get("weights.uri", f"no weights of {reference}"))
