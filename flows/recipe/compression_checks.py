"""Checks that the candidates of a recipe can be built from its network, before any time is spent."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.flows.recipe.training_checks import branch_kinds, check_network
from bloomery.models.compression.config import NOT_COMPRESSIBLE, PRUNABLE, CandidateSpec, Compression
from bloomery.models.compression.obstacles import (
    find_compression_obstacle,
    find_distillation_obstacle,
    find_factorization_obstacle,
    find_layer_obstacle,
    find_pruning_obstacle,
    find_vocabulary_obstacle,
)
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Fused, Model
from bloomery.models.networks.pretrained_config import Pretrained

_NO_STUDENTS = ("auto", "imported", "boosted_trees", "tabm", "tabular_ensemble")


def check_compression(features: Features, model: Model, compression: Compression) -> Iterator[str]:
    if compression.search is not None and model.kind in NOT_COMPRESSIBLE:
        yield (
            f"compression.search: {model.kind} consists of trees, which have no weights to prune or quantize; leave "
            "`search` out"
        )
    if compression.search is not None and model.kind == "imported":
        yield (
            "compression.search: an imported network cannot be pruned; name candidates with a `student` that "
            "replaces it"
        )
    yield from _check_distillation(model, compression)
    candidates = compression.candidates or ()
    has_float_student = any(candidate.student and candidate.is_float for candidate in candidates)
    if compression.extra_formats and model.kind in ("imported", *NOT_COMPRESSIBLE) and not has_float_student:
        noun = "an imported network" if model.kind == "imported" else model.kind
        yield (
            f"compression.extra_formats: {noun} is not a PyTorch network, so it has no other formats; "
            "leave `extra_formats` out, or name a float candidate with a `student` that replaces it"
        )
    if compression.extra_formats and "imported" in branch_kinds(model).values():
        yield "compression.extra_formats: an imported branch runs in ONNX Runtime only; leave `extra_formats` out"
    for candidate in candidates:
        yield from _check_candidate(features, model, candidate)


def _check_candidate(features: Features, model: Model, candidate: CandidateSpec) -> Iterator[str]:
    obstacle = find_compression_obstacle(model.kind, candidate)
    if obstacle is not None:
        yield (
            f"compression.candidates: {candidate.name} cannot be built: {obstacle}; leave the candidate out, or let a "
            "`student` replace the trees"
        )
        return
    network = candidate.new_network or model
    if isinstance(model, Pretrained | Fused):
        yield from _check_pretrained_candidate(model, candidate)
    reason = (
        None if candidate.prune is None or model.kind == "auto" else find_pruning_obstacle(network, candidate.prune)
    )
    if reason is not None:
        yield f"compression.candidates: {candidate.name} cannot be pruned: {reason}; change or leave out `prune`"
    if candidate.factorize is not None and network.kind == "imported":
        yield (
            f"compression.candidates: {candidate.name} cannot be factorized: an imported network is not changed; "
            "leave `factorize` out, or let a `student` replace it"
        )
    reason = None if candidate.factorize is None else find_factorization_obstacle(network)
    if reason is not None:
        yield f"compression.candidates: {candidate.name} cannot be factorized: {reason}"
    student = candidate.new_network
    if student is not None and student.kind in _NO_STUDENTS:
        yield (
            f"compression.candidates: {candidate.name} has a student of kind {student.kind}; name a network that can "
            "be trained"
        )
    elif isinstance(student, Fused) and {"pretrained", "imported"} & set(branch_kinds(student).values()):
        yield (
            f"compression.candidates: {candidate.name} has a student with a trained branch; name branches that learn "
            "from the trained network, such as an rnn"
        )
    elif isinstance(student, Pretrained):
        yield (
            f"compression.candidates: {candidate.name} has a student of kind pretrained; a student takes layers of the "
            "trained network instead, as in `student: {layers: 3}`"
        )
    elif student is not None:
        where = f"compression.candidates: {candidate.name}'s student"
        yield from (f"{where}: {problem}" for problem in check_network(features, student))


def _check_pretrained_candidate(model: Pretrained | Fused, candidate: CandidateSpec) -> Iterator[str]:
    obstacles = {}
    if candidate.trim_vocabulary is not None:
        obstacles["trim_vocabulary"] = find_vocabulary_obstacle(model)
    if candidate.student is not None and candidate.student.layers is not None:
        obstacles["student.layers"] = find_layer_obstacle(model, candidate.student.layers)
    for option, obstacle in obstacles.items():
        if obstacle is not None:
            yield f"compression.candidates: {candidate.name} cannot be built by `{option}`: {obstacle}"


def _check_distillation(model: Model, compression: Compression) -> Iterator[str]:
    """Yields students that lack what distillation compares with the teacher."""
    if compression.distill is None or model.kind == "auto":
        return
    students = {
        candidate.name: candidate.new_network for candidate in compression.candidates or () if candidate.changes_network
    }
    if compression.search is not None or (compression.candidates is None and model.kind in PRUNABLE):
        students["a pruned network"] = None
    for name, student in students.items():
        reason = find_distillation_obstacle(model, student or model, compression.distill)
        if reason is not None:
            yield f"compression.distill: {name} cannot be distilled from the trained network: {reason}"
