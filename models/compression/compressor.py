"""From a trained network to a smaller one that has learnt from it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.config import (
    CandidateSpec,
    Compression,
    Distillation,
    Sparsification,
    find_distillation_obstacle,
)
from bloomery.models.compression.distillation import add_unlabelled, create_distiller
from bloomery.models.compression.low_rank import factorize
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.pruning.unstructured import (
    Masks,
    compute_masks,
    compute_n_of_m_masks,
    fixed_masks,
    scheduled_density,
)
from bloomery.models.compression.quantization.quantization_aware import add_fake_quantization, find_first_called_layer
from bloomery.models.compression.weight_clustering import cluster_weights, shared_weights
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples
from bloomery.models.training.loop import (
    EpochResult,
    Placement,
    TrainingHooks,
    move_to_cpu,
    train,
    use_channels_last,
)
from bloomery.models.training.optimization.learner import create_learner


class FineTuning(NamedTuple):
    """From what a smaller network learns: the rows, and the network whose answers it is to give.

    To the rows of `unlabelled` (B, ...) only the teacher has an answer: without distillation nobody learns from them.
    """

    train: Examples
    val: Examples
    teacher: nn.Module
    compression: Compression
    unlabelled: torch.Tensor | None = None
    seed: int = 0
    device: str = "cpu"  # on which networks learn; before and after they are on the processor
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None


def compress_network(network: nn.Module, blueprint: Blueprint, spec: CandidateSpec, lesson: FineTuning) -> nn.Module:
    """A network for the candidate before it is quantized, in evaluation mode. `network` is left as it is.

    What `spec` states happens in this order, and after each the network learns: a student takes the network's place,
    units leave, large matrices become thin ones, weights become 0 and share few values, everything is rounded (of which
    `learned_ranges` tells). `network` may be anything that answers where a student is stated.

    Raises:
        RecipeInvalid: what is asked cannot be done with a network of this kind, or taught by one.
        TrainingDiverged: the loss of the fine-tuning is not a number.
    """
    torch.manual_seed(lesson.seed)  # so that no candidate depends on those made before it
    fine_tune = lesson.compression.fine_tune
    if lesson.compression.distill is not None:
        student = blueprint.config if spec.student is None else spec.student.model
        _require_teachable(blueprint.config, student, lesson.compression.distill)
    if spec.student is not None:
        blueprint = blueprint.model_copy(update={"config": spec.student.model})
        network = build_network(blueprint)
        _taught(lesson, spec.student.training or fine_tune)(network)
    if spec.prune is not None:

        def tune(smaller: nn.Module, rounds: int) -> None:
            _taught(lesson, _of_a_round(fine_tune, rounds))(smaller)

        network, blueprint = prune_network(network, blueprint, spec.prune, lesson.train, tune)
    if spec.factorise is not None:
        network = factorize(network, spec.factorise)
        _taught(lesson, fine_tune)(network)
    if spec.sparse is not None:
        network = _sparsified(network, spec.sparse, lesson)
    if spec.values is not None:
        network = copy.deepcopy(network)
        with shared_weights(network, cluster_weights(network, spec.values)):
            _taught(lesson, fine_tune)(network)
    if spec.aware:
        kept = find_first_called_layer(network, lesson.train.x[:1]) if spec.float_layers == "first" else ()
        network = add_fake_quantization(network, reduce_range=bool(spec.reduce_range), keep_float=kept)
        _taught(lesson, fine_tune)(network)
    return network


def _require_teachable(teacher: Model, student: Model, how: Distillation) -> None:
    why = find_distillation_obstacle(teacher, student, how)
    if why is not None:
        raise RecipeInvalid(
            f"a candidate is to learn from the network as trained, and {why}",
            required="something that both of them have inside",
            where="compression.distill of the recipe",
            remedy="change `distill`, whose `weight` alone teaches any network, or the candidate's `student`",
        )


def _sparsified(network: nn.Module, how: Sparsification, lesson: FineTuning) -> nn.Module:
    """A copy with the zeros that are wanted. Each round has its part of the epochs, the last one all."""
    sparse, fine_tune = copy.deepcopy(network), lesson.compression.fine_tune
    for number in range(1, how.rounds + 1):
        loop = _of_a_round(fine_tune, how.rounds) if number < how.rounds else fine_tune
        with fixed_masks(sparse, _masks_in(number, sparse, how)):
            _taught(lesson, loop)(sparse)
    return sparse


def _masks_in(number: int, network: nn.Module, how: Sparsification) -> Masks:
    """Which weights stay in this round; in the last one as few as are wanted."""
    if how.of_each is not None:
        kept, group = how.of_each
        return compute_n_of_m_masks(
            network, round(scheduled_density(number, how.rounds, last=kept / group) * group), group
        )
    assert how.density is not None
    return compute_masks(network, scheduled_density(number, how.rounds, last=how.density), how.scope)


def _of_a_round(loop: Loop, rounds: int) -> Loop:
    return loop.model_copy(update={"epochs": max(loop.epochs // rounds, 1)})


def _taught(lesson: FineTuning, loop: Loop) -> Callable[[nn.Module], object]:
    """What teaches a network in place."""
    distill = lesson.compression.distill
    learner = create_learner if distill is None else create_distiller(lesson.teacher, distill)
    rows = lesson.train
    if distill is not None and lesson.unlabelled is not None:
        rows = add_unlabelled(rows, lesson.unlabelled)

    def teach(network: nn.Module) -> None:
        use_channels_last(lesson.teacher).to(lesson.device)
        try:
            train(
                network,
                rows,
                lesson.val,
                loop,
                seed=lesson.seed,
                placement=Placement(lesson.device, parallelize=learner),
                hooks=TrainingHooks(on_epoch=lesson.on_epoch),
            )
        finally:
            move_to_cpu(lesson.teacher)

    return teach
