"""Checks that a network can have a shift for the class out of scope."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training

_NETWORKS_WITH_HEADS = (
    *("cnn", "lenet", "resnet", "mlp", "ft_transformer"),
    *("rnn", "transformer", "gpt", "pretrained"),
)


def check_scope_students(training: Training, compression: Compression) -> Iterator[str]:
    """Yields candidates whose networks cannot have the shift, which is chosen for each of them."""
    if training.out_of_scope is None:
        return
    for candidate in compression.candidates or ():
        student = candidate.new_network
        if student is not None and student.kind not in _NETWORKS_WITH_HEADS:
            yield (
                f"compression.candidates: the student of {candidate.name} is a {student.kind} without a linear head, "
                "in which the shift of `training.out_of_scope` could be stored; use one of "
                f"{', '.join(_NETWORKS_WITH_HEADS)}"
            )


def check_out_of_scope(features: Features, model: Model, training: Training) -> Iterator[str]:
    """Yields why no logit of a class can be shifted."""
    if training.out_of_scope is None:
        return
    if features.task != "classification":
        yield f"training.out_of_scope: it is a class, but the task is {features.task}; leave it out"
    if model.kind not in _NETWORKS_WITH_HEADS:
        yield (
            f"training.out_of_scope: a {model.kind} has no linear head, in which the shift could be stored; use one of "
            f"{', '.join(_NETWORKS_WITH_HEADS)}"
        )
