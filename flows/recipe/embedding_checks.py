"""Checks that an embedding uses only what works for vectors of texts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bloomery.data_contracts.records.checkpoint import MODULES_FILE, PROMPTS_FILE, TEXTS_FILE
from bloomery.flows.recipe.fine_tuning import find_loops
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import EMBEDDING_KINDS, Model, vector_width
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.models.training.config import VECTOR_OPTIONS, Loop, Training
from bloomery.tasks.checkpoints.sentence_vectors import find_default_prompt, find_other_modules, lowers_case

_TASK = "`task: embedding` of the features"


def check_embedding(
    features: Features, model: Model, training: Training | None, compression: Compression | None
) -> Iterator[str]:
    """Yields options that do not work for vectors; of other tasks, options that work for vectors alone."""
    if features.task != "embedding":
        yield from _check_other_task(training, compression)
        return
    yield from _check_kind("model", model)
    if features.unlabelled == "teach":
        yield "features.unlabelled: a text without a positive teaches nothing; leave it out"
    if training is not None:
        yield from _check_training(training, model)
    if compression is not None:
        yield from _check_compression(compression, model)


def _check_other_task(training: Training | None, compression: Compression | None) -> Iterator[str]:
    loops: dict[str, Loop] = {} if training is None else {"training": training}
    loops |= {} if compression is None else find_loops(compression)
    for name in VECTOR_OPTIONS:
        # Fine-tuning inherits the option of the training, so it is named once.
        place = next((place for place, loop in loops.items() if getattr(loop, name) is not None), None)
        if place is not None:
            yield f"{place}.{name}: it is an option of {_TASK}; leave it out"
    for candidate in (compression.candidates or ()) if compression is not None else ():
        for name in ("dimensions", "vectors"):
            if getattr(candidate, name) is not None:
                yield f"compression.candidates: {name} of {candidate.name} is an option of {_TASK}; leave it out"


def _check_kind(place: str, model: Model) -> Iterator[str]:
    if model.kind not in EMBEDDING_KINDS:
        yield f"{place}: a network of kind {model.kind} computes no vectors of texts; use {', '.join(EMBEDDING_KINDS)}"
    elif isinstance(model, Pretrained) and model.config is not None and vector_width(model) is None:
        yield f"{place}: config.json of {model.checkpoint} states no hidden_size; name another checkpoint"
    elif isinstance(model, Pretrained) and model.resolved is not None:
        yield from _check_vectors(place, model.checkpoint, Path(model.resolved.folder))


def _check_vectors(place: str, name: str, folder: Path) -> Iterator[str]:
    """Yields why the vectors would be others than those that sentence-transformers computes."""
    modules = find_other_modules(folder)
    if modules:
        yield (
            f"{place}: sentence-transformers computes the vectors of {name} with {', '.join(modules)} "
            f"after the pooling, which the network does not have; name another checkpoint, or one without "
            f"{MODULES_FILE} to learn vectors without it"
        )
    prompt = find_default_prompt(folder)
    if prompt:
        yield (
            f"{place}: sentence-transformers puts {prompt[:80]!r} before each text for {name}, and rows lack it; "
            f"put it into the columns, and name a copy of {folder} without default_prompt_name in {PROMPTS_FILE}"
        )
    if lowers_case(folder):
        yield (
            f"{place}: sentence-transformers lowers the case of each text for {name}, and rows keep it; lower it in "
            f"the columns, and name a copy of {folder} without do_lower_case in {TEXTS_FILE}"
        )


def _check_training(training: Training, model: Model) -> Iterator[str]:
    for name, reason in (
        ("class_weights", "texts belong to no class"),
        ("label_smoothing", "texts belong to no class"),
        ("privacy", "the contrastive loss of a row depends on the other rows of its batch"),
        ("slices", "the positives of a slice alone would be easier to find"),
        ("search", "a search for vectors is not implemented; name the network and its options"),
    ):
        if getattr(training, name) != Training.model_fields[name].get_default(call_default_factory=True):
            yield f"training.{name}: {reason}; leave it out"
    if training.explain is not None and "explain" in training.model_fields_set:
        yield "training.explain: the values of a vector have no meaning of their own to explain; leave it out"
    if any(stage.objective != "task" for stage in training.stages):
        yield "training.stages: pairs of texts already teach without labels; leave out stages with an `objective`"
    if training.strategy == "pipeline":
        yield "training.strategy: a pipeline computes the loss of a part of a batch; use ddp, fsdp or tensor"
    width = vector_width(model)
    too_long = [length for length in training.matryoshka or () if width is not None and length >= width]
    if too_long:
        yield (
            f"training.matryoshka: {', '.join(map(str, too_long))} is not shorter than the vectors, which have {width} "
            "values; the complete vector is always trained"
        )


def _check_compression(compression: Compression, model: Model) -> Iterator[str]:
    if compression.search is not None:
        yield "compression.search: a search for vectors is not implemented; name `candidates`"
    for name in compression.extra_formats:
        yield f"compression.extra_formats: a {name} file has outputs that are no vectors yet; leave it out"
    for candidate in compression.candidates or ():
        yield from _check_candidate(candidate, model)


def _check_candidate(candidate: CandidateSpec, model: Model) -> Iterator[str]:
    place = f"compression.candidates: {candidate.name}"
    if isinstance(candidate.float_layers, float):
        yield f"{place}: `float_layers` needs an error rate, which vectors do not have; use `first`, or leave it out"
    if candidate.new_network is not None:
        yield from _check_kind(f"compression.candidates: the student of {candidate.name}", candidate.new_network)
    width = vector_width(model)
    if candidate.dimensions is not None and width is not None and candidate.dimensions >= width:
        yield f"{place}: `dimensions` is {candidate.dimensions}, and vectors have {width} values; take fewer"
