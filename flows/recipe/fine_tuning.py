"""The trainings of a compression: their options, and those that they take from the training of the network."""

from __future__ import annotations

from bloomery.models.compression.config import Compression
from bloomery.models.compression.inherited_loss import inherit_candidate_losses, inherit_loss
from bloomery.models.training.config import Loop


def find_loops(compression: Compression) -> dict[str, Loop]:
    """Returns the options of each training, by their path in the recipe."""
    loops = {"compression.fine_tune": compression.fine_tune}
    for candidate in compression.candidates or ():
        for name, step in (("student", candidate.student), ("prune", candidate.prune)):
            if step is not None and step.training is not None:
                loops[f"compression.candidates: {name}.training of {candidate.name}"] = step.training
    return loops


def inherit_options(compression: Compression, training: Loop) -> Compression:
    """Returns the compression with the options of the loss of `training` where none are stated."""
    fine_tune, candidates = inherit_loss(compression.fine_tune, training), compression.candidates
    if candidates is not None:
        candidates = inherit_candidate_losses(candidates, training)
    return compression.model_copy(update={"fine_tune": fine_tune, "candidates": candidates})
