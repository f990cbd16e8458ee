"""Loads the ONNX files of a fused network's imported branches, adapted to the encoded rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.models.networks.config import Fused, Imported

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.networks.blueprint import Blueprint
    from bloomery.models.training.data.batches import ExampleSource

_NUM_COMPARED_ROWS = 32  # on which the outputs of an adapted file are compared with those of the original


def load_imported_branches(network: nn.Module, blueprint: Blueprint, train: ExampleSource) -> None:
    """Gives each imported branch of `network` its file. Other networks stay unchanged.

    Raises:
        OutputCorrupt: a file has changed since the recipe was read.
        RecipeInvalid: a file does not fit the rows of its part.
    """
    from bloomery.models.networks.architectures.fused import FusedNetwork, part_rows
    from bloomery.models.networks.architectures.imported_branch import ImportedBranch
    from bloomery.models.onnx_import.importer import import_features

    config = blueprint.config
    if not isinstance(network, FusedNetwork) or not isinstance(config, Fused) or config.branches is None:
        return
    x_BF, _ = next(train.iterate())
    for branch, place in zip(network.branches, network.slices, strict=True):
        model = config.branches[place.part.name]
        if not isinstance(model, Imported) or not isinstance(branch, ImportedBranch):
            continue
        path = _require_unchanged(model)
        rows = part_rows(x_BF[:_NUM_COMPARED_ROWS], *place).numpy()
        features = import_features(path, place.part.layout, rows, model.channels)
        branch.load_file(features.model.SerializeToString(deterministic=True), features.num_features)


def _require_unchanged(model: Imported) -> Path:
    path = Path(model.path)
    if not path.is_file() or digest_of_file(path) != model.sha256:
        raise OutputCorrupt(
            f"{path.name} has changed since the recipe was read",
            required=f"the file with sha256 {model.sha256}",
            where=str(path),
            remedy="run the recipe again",
        )
    return path
