"""Checks that a multilabel task uses only what works for sets of labels."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import CategoryInput
from bloomery.models.networks.config import NOT_MULTILABEL, Model
from bloomery.models.training.config import Training

_TABLE_NETWORKS = "tabm, mlp or ft_transformer"


def check_multilabel(
    features: Features, model: Model, training: Training | None, compression: Compression | None
) -> Iterator[str]:
    """Yields options that do not work for sets of labels; nothing for other tasks."""
    if features.task != "multilabel":
        return
    if features.is_forecast:
        yield "features.task: sets of labels are not forecast; set `horizon: 0`, or use `task: regression`"
    if any(isinstance(source, CategoryInput) and source.encoding == "target" for source in features.inputs):
        yield "features.inputs: `encoding: target` needs one label per row; use `encoding: index` or `one_hot`"
    yield from _check_kind("model", model)
    if training is not None:
        yield from _check_training(training)
    for candidate in (compression.candidates or ()) if compression is not None else ():
        if candidate.new_network is not None:
            yield from _check_kind(f"compression.candidates: the student of {candidate.name}", candidate.new_network)


def _check_kind(place: str, model: Model) -> Iterator[str]:
    reason = NOT_MULTILABEL.get(model.kind)
    if reason is not None:
        alternative = _TABLE_NETWORKS if model.kind != "imported" else "a network that is trained here"
        yield f"{place}: {model.kind} does not predict sets of labels, since {reason}; use {alternative}"


def _check_training(training: Training) -> Iterator[str]:
    for name, reason in (
        ("class_weights", "rows have several labels, so they belong to no single class; leave it out"),
        (
            "label_smoothing",
            "it moves probability between classes, and labels are independent; leave it out",
        ),
        ("privacy", "the private loss of sets of labels is not implemented; leave it out"),
    ):
        if getattr(training, name) != Training.model_fields[name].default:
            yield f"training.{name}: {reason}"
    for path in () if training.search is None else training.search.space:
        if path in ("training.class_weights", "training.label_smoothing"):
            yield f"training.search.space: {path} has no effect on sets of labels; leave it out"
