"""Checks that a recipe with several labels uses only what works for several outputs."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import CategoryInput
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training

_REASONS = {
    "boosted_trees": "its trees are fitted to one label per row",
    "tabular_ensemble": "its trees are fitted to one label per row",
    "imported": "its outputs are read as those of one label",
}


def check_multioutput(
    features: Features, model: Model, training: Training | None, compression: Compression | None
) -> Iterator[str]:
    """Yields options that do not work for several outputs; nothing for other tasks."""
    if features.task not in ("multioutput", "multitask"):
        return
    if any(isinstance(source, CategoryInput) and source.encoding == "target" for source in features.inputs):
        yield "features.inputs: `encoding: target` needs one label per row; use `encoding: index` or `one_hot`"
    yield from _check_kind("model", model)
    if training is not None:
        if training.privacy is not None:
            yield "training.privacy: the private loss of several outputs is not implemented; leave it out"
        if "explain" in training.model_fields_set and training.explain is not None:
            yield (
                "training.explain: explanations of several outputs are not reported by a run; leave it out: "
                "the endpoint explains each, by /explain?label=NAME"
            )
        if training.strategy == "pipeline":
            yield "training.strategy: the stages of a pipeline predict one label; use ddp, fsdp or tensor"
        if training.label_smoothing and features.task == "multitask":
            yield "training.label_smoothing: it is for the classes of one label; leave it out"
    for candidate in (compression.candidates or ()) if compression is not None else ():
        if candidate.student is not None and candidate.student.model is not None:
            yield from _check_kind(f"compression.candidates: the student of {candidate.name}", candidate.student.model)


def _check_kind(place: str, model: Model) -> Iterator[str]:
    reason = _REASONS.get(model.kind)
    if reason is not None:
        alternative = "tabm, mlp or ft_transformer" if model.kind != "imported" else "a network that is trained here"
        yield f"{place}: {model.kind} does not predict several labels, since {reason}; use {alternative}"
