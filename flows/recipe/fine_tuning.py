"""The trainings of a compression: their options, and those that they take from the training of the network."""

from __future__ import annotations

from typing import TypeVar

from bloomery.models.compression.config import Compression, Pruning, Student
from bloomery.models.training.config import VECTOR_OPTIONS, Loop

StepT = TypeVar("StepT", Pruning, Student)
_INHERITED = (*VECTOR_OPTIONS, "loss", "class_weights")


def find_loops(compression: Compression) -> dict[str, Loop]:
    """Returns the options of each training, by their path in the recipe."""
    loops = {"compression.fine_tune": compression.fine_tune}
    for candidate in compression.candidates or ():
        for name, step in (("student", candidate.student), ("prune", candidate.prune)):
            if step is not None and step.training is not None:
                loops[f"compression.candidates: {name}.training of {candidate.name}"] = step.training
    return loops


def inherit_options(compression: Compression, training: Loop) -> Compression:
    """Returns the compression with the options of the loss in `training` where none are stated.

    Otherwise fine-tuning unlearns what the network was trained for: rare classes with balanced weights, rows that are
    no outliers with the Huber loss, or the short vectors of `matryoshka`.
    """
    options = {name: getattr(training, name) for name in _INHERITED if not _is_default(training, name)}

    def complete(loop: Loop) -> Loop:
        missing = {
            name: value
            for name, value in options.items()
            if name not in loop.model_fields_set or getattr(loop, name) is None
        }
        return loop.model_copy(update=missing)

    def complete_step(step: StepT | None) -> StepT | None:
        if step is None or step.training is None:
            return step
        return step.model_copy(update={"training": complete(step.training)})

    if not options:
        return compression
    candidates = compression.candidates
    if candidates is not None:
        candidates = tuple(
            candidate.model_copy(
                update={"student": complete_step(candidate.student), "prune": complete_step(candidate.prune)}
            )
            for candidate in candidates
        )
    return compression.model_copy(update={"fine_tune": complete(compression.fine_tune), "candidates": candidates})


def _is_default(loop: Loop, name: str) -> bool:
    return bool(getattr(loop, name) == Loop.model_fields[name].default)
