"""Options of the loss that the trainings of candidates take from that of the network.

Otherwise they unlearn what it was trained for: rare classes by balanced weights, short vectors by `matryoshka`.
"""

from __future__ import annotations

from bloomery.models.compression.config import CandidateSpec, Pruning, Student
from bloomery.models.training.config import VECTOR_OPTIONS, Loop

_OPTIONS = (*VECTOR_OPTIONS, "loss", "class_weights")


def inherit_loss(loop: Loop, training: Loop) -> Loop:
    """Returns `loop` with the options of the loss of `training` that it does not state itself."""
    missing = {
        name: getattr(training, name)
        for name in _OPTIONS
        if not _is_default(training, name) and (name not in loop.model_fields_set or getattr(loop, name) is None)
    }
    return loop.model_copy(update=missing) if missing else loop


def inherit_candidate_losses(candidates: tuple[CandidateSpec, ...], training: Loop) -> tuple[CandidateSpec, ...]:
    """Returns the candidates, after `inherit_loss` for each training that a step of them states."""
    return tuple(_complete_candidate(candidate, training) for candidate in candidates)


def _complete_candidate(candidate: CandidateSpec, training: Loop) -> CandidateSpec:
    steps: dict[str, Student | Pruning | None] = {"student": candidate.student, "prune": candidate.prune}
    changed: dict[str, Student | Pruning] = {}
    for name, step in steps.items():
        if step is None or step.training is None:
            continue
        loop = inherit_loss(step.training, training)
        if loop is not step.training:
            changed[name] = step.model_copy(update={"training": loop})
    return candidate.model_copy(update=changed) if changed else candidate


def _is_default(loop: Loop, name: str) -> bool:
    return bool(getattr(loop, name) == Loop.model_fields[name].default)
