"""Finds the checkpoints of an earlier run again: in their folders, or where their references lead now."""

from __future__ import annotations

from pathlib import Path

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import Input, TextInput
from bloomery.models.networks.config import Fused, Model
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.checkpoints.hub import HUB_PREFIX, is_hub_name
from bloomery.tasks.checkpoints.packages import PACKAGE_PREFIX
from bloomery.tasks.checkpoints.resolve import resolve_checkpoint


def relocate_checkpoints(features: Features, model: Model) -> tuple[Features, Model]:
    """Returns both with the folders that have the files of the original run.

    Raises:
        DataMissing: the folder of a checkpoint has moved, or another one has other files.
        EngineMissing: the package with a checkpoint is not installed.
    """
    inputs = tuple(map(_relocate_input, features.inputs))
    return features.model_copy(update={"inputs": inputs}), _relocate_network(model)


def _relocate_network(model: Model) -> Model:
    match model:
        case Pretrained(resolved=Checkpoint() as checkpoint):
            return model.model_copy(update={"resolved": _relocate(checkpoint)})
        case Fused(branches=dict(branches)):
            return model.model_copy(
                update={"branches": {name: _relocate_network(branch) for name, branch in branches.items()}}
            )
    return model


def _relocate_input(source: Input) -> Input:
    if isinstance(source, TextInput) and source.checkpoint is not None:
        return source.model_copy(update={"checkpoint": _relocate(source.checkpoint)})
    return source


def _relocate(checkpoint: Checkpoint) -> Checkpoint:
    missing = [name for name in checkpoint.files if not checkpoint.path(name).is_file()]
    if not missing:
        return checkpoint  # stages compare the digests before they use a file
    reference, name = checkpoint.reference, checkpoint.reference.removeprefix(HUB_PREFIX)
    problem = f"the folder {checkpoint.folder} no longer has {', '.join(missing[:3])} of the checkpoint {reference}"
    if checkpoint.revision is not None and (reference.startswith(PACKAGE_PREFIX) or is_hub_name(name)):
        if not reference.startswith(PACKAGE_PREFIX):
            reference = f"{HUB_PREFIX}{name.partition('@')[0]}@{checkpoint.revision}"
        located = resolve_checkpoint(reference, Path(checkpoint.folder))
        changed = [name for name, digest in checkpoint.files.items() if located.files.get(name) != digest]
        if not changed:
            return checkpoint.model_copy(update={"folder": located.folder})
        problem += f", and {located.folder} has another {', '.join(changed[:3])}"
    raise DataMissing(
        problem,
        required="the files whose sha256 are in the version's provenance",
        where=checkpoint.folder,
        remedy=f"move the folder back, or link to its new place: `ln -s NEW_PLACE {checkpoint.folder}`; the digests of "
        "its files are compared",
    )
