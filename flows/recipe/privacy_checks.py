"""Checks that nothing in a recipe breaks the guarantee of private training."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.models.compression.config import Compression
from bloomery.models.networks.config import Fused, Mlp, Model, TabM, TabularEnsemble
from bloomery.models.training.config import Training

# Options that private training does not support: it samples rows at random, clips gradients and adds noise.
_NOT_PRIVATE = (
    *("accumulate", "clip_norm", "class_weights", "ema", "best_by", "patience"),
    *("precision", "compile", "length_bucketing", "augment", "discount", "stages", "lora"),
    *("devices", "nodes"),
)


def check_privacy(model: Model, training: Training, compression: Compression) -> Iterator[str]:
    """Yields options that would break the guarantee of private training, or that it does not support."""
    if training.privacy is None:
        return
    if model.kind == "auto":
        yield "training.privacy: `model: auto` tries networks with batch normalisation; name a network"
    has_batch_norm = model.kind in ("cnn", "resnet") or (isinstance(model, Mlp) and model.norm == "batch")
    if has_batch_norm:
        remedy = "set `norm: none`" if isinstance(model, Mlp) else "use another kind of network"
        yield (
            f"training.privacy: a {model.kind} normalises over the rows of a batch, so gradients of single rows do not "
            f"exist; {remedy}"
        )
    if model.kind == "pretrained":
        yield "training.privacy: the rows of a pretrained network share positions: no gradient is of one row; use a gpt"
    if isinstance(model, Fused):
        yield "training.privacy: the branches of a fused network normalise over the rows of a batch; use one input kind"
    if isinstance(model, TabM | TabularEnsemble):
        yield f"training.privacy: the layers and trees of {model.kind} have no per-row gradients; use an mlp"
    if isinstance(model, Mlp) and model.periodic is not None:
        yield "training.privacy: the frequencies of `periodic` have no per-row gradients; leave it out"
    for name in _NOT_PRIVATE:
        if getattr(training, name) != type(training).model_fields[name].default:
            yield f"training.{name} is not supported by private training; leave it out"
    if training.search is not None:
        yield "training.search: every trial would spend privacy of the same rows; leave it out of private training"
    for candidate in compression.candidates or ():
        if candidate.changes_network:
            yield (
                f"compression.candidates: {candidate.name} would be trained on the same rows without noise, "
                "so epsilon would not hold; leave it out"
            )
