"""Builds a compressed network from the trained one and fine-tunes it after each step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.models.compression.branches import change_pretrained_branches
from bloomery.models.compression.config import CandidateSpec, Compression, Distillation, Sparsification
from bloomery.models.compression.distillation import add_unlabelled, create_distiller, target_distance
from bloomery.models.compression.low_rank import factorize
from bloomery.models.compression.obstacles import (
    find_distillation_obstacle,
    find_layer_obstacle,
    find_vocabulary_obstacle,
)
from bloomery.models.compression.pruning.pretrained_layers import take_layers
from bloomery.models.compression.pruning.structured import prune_network
from bloomery.models.compression.pruning.unstructured import (
    Masks,
    compute_masks,
    compute_n_of_m_masks,
    fixed_masks,
    scheduled_density,
)
from bloomery.models.compression.quantization.quantization_aware import add_fake_quantization, find_first_called_layer
from bloomery.models.compression.vocabulary import find_essential_tokens, select_tokens, trim_vocabulary
from bloomery.models.compression.weight_clustering import cluster_weights, shared_weights
from bloomery.models.networks.architectures.fused import FusedNetwork
from bloomery.models.networks.architectures.pretrained import PretrainedNetwork
from bloomery.models.networks.architectures.token_bag import learn_importances
from bloomery.models.networks.blueprint import Blueprint, build_network
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Loop
from bloomery.models.training.data.batches import Examples, TrainingData
from bloomery.models.training.loop import (
    EpochResult,
    Placement,
    TrainingHooks,
    move_to_cpu,
    predict,
    train,
    use_channels_last,
)
from bloomery.models.training.optimization.score_measure import ScoreMeasure
from bloomery.models.training.out_of_scope import ScopeClass, choose_scope_shift, shift_class


class FineTuning(NamedTuple):
    """The rows, the teacher and the settings with which compressed networks are trained.

    Rows of `unlabelled` (B, ...) count only with distillation, since only the teacher has outputs for them.
    """

    train: Examples
    val: Examples
    teacher: nn.Module
    compression: Compression
    unlabelled: torch.Tensor | None = None
    seed: int = 0
    device: str = "cpu"  # for training; before and after, networks are on the CPU
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None
    measure: ScoreMeasure | None = None  # of the score of an epoch, as in `TrainingData`
    tokenizers: Mapping[str, str] = MappingProxyType({})  # by part of texts, in the JSON of the library `tokenizers`
    scope: ScopeClass | None = None  # for which a shift of the candidate is chosen; the teacher has none
    on_shift: Callable[[float], None] = lambda shift: None  # is called with that shift


def compress_network(
    network: nn.Module, blueprint: Blueprint, spec: CandidateSpec, fine_tuning: FineTuning
) -> nn.Module:
    """The candidate's network before quantization, in evaluation mode. `network` does not change.

    The steps of `spec` run in this order, and training follows each but the first: vocabulary trimming, replacement by
    a student, structured pruning, low-rank factorization, unstructured pruning, weight clustering, fake quantization
    (see `learned_ranges`). The shift for a class out of scope comes last. With a new student, `network` may be any
    module that has outputs.

    Raises:
        RecipeInvalid: a network of this kind does not support a step, or cannot teach the student.
        TrainingDiverged: the loss of the fine-tuning is not a number.
    """
    torch.manual_seed(fine_tuning.seed)  # so no candidate depends on those built before it
    loop = fine_tuning.compression.fine_tune
    if fine_tuning.compression.distill is not None:
        student = spec.new_network or blueprint.config
        _require_teachable(blueprint.config, student, fine_tuning.compression.distill)
    if spec.trim_vocabulary is not None:
        network, blueprint = _trim_vocabulary(network, blueprint, spec.trim_vocabulary, fine_tuning)
    if spec.student is not None:
        if spec.student.layers is not None:
            network, blueprint = _take_layers(network, blueprint, spec.student.layers)
        else:
            blueprint = blueprint.model_copy(update={"config": spec.student.model})
            network = build_network(blueprint)
            learn_importances(network, fine_tuning.train.x)
        _train(network, fine_tuning, spec.student.training or loop)
    if spec.prune is not None:
        pruning_loop = spec.prune.training or loop

        def train_round(pruned: nn.Module, num_rounds: int) -> None:
            _train(pruned, fine_tuning, _loop_of_round(pruning_loop, num_rounds))

        network, blueprint = prune_network(network, blueprint, spec.prune, fine_tuning.train, train_round)
    if spec.factorize is not None:
        network = factorize(network, spec.factorize)
        _train(network, fine_tuning, loop)
    if spec.sparsify is not None:
        network = _sparsify(network, spec.sparsify, fine_tuning)
    if spec.num_clusters is not None:
        network = copy.deepcopy(network)
        with shared_weights(network, cluster_weights(network, spec.num_clusters)):
            _train(network, fine_tuning, loop)
    if spec.quantization_aware:
        keep_float = find_first_called_layer(network, fine_tuning.train.x[:1]) if spec.float_layers == "first" else ()
        network = add_fake_quantization(network, reduce_range=bool(spec.reduce_range), keep_float=keep_float)
        _train(network, fine_tuning, loop)
    if fine_tuning.scope is not None:
        fine_tuning.on_shift(_shift_decisions(network, fine_tuning.val, fine_tuning.scope))
    return network


def _shift_decisions(network: nn.Module, val: Examples, scope: ScopeClass) -> float:
    """Training has moved the head's bias, so the shift for the class out of scope is chosen for the candidate."""
    outputs_NK, y = predict(network, val.x).numpy(), val.y.numpy()
    shift = choose_scope_shift(outputs_NK, y, scope.label, scope.max_drop)
    shift_class(network, scope.label, shift)
    return shift


def _take_layers(
    network: nn.Module, blueprint: Blueprint, layers: int | tuple[int, ...]
) -> tuple[nn.Module, Blueprint]:
    if not isinstance(network, FusedNetwork):
        return take_layers(_require_pretrained(network, "student.layers"), blueprint, layers)
    return change_pretrained_branches(
        network,
        blueprint,
        lambda config: find_layer_obstacle(config, layers),
        lambda branch: take_layers(_require_pretrained(branch.network, "student.layers"), branch.blueprint, layers),
    )


def _trim_vocabulary(
    network: nn.Module, blueprint: Blueprint, share: float, fine_tuning: FineTuning
) -> tuple[nn.Module, Blueprint]:
    """No training follows: the outputs for training rows stay, but for tokens that `share` leaves out."""
    rows = [fine_tuning.train.x]
    if blueprint.task == "embedding":
        rows.append(fine_tuning.train.y)  # the texts of positives
    if fine_tuning.unlabelled is not None:
        rows.append(fine_tuning.unlabelled)
    x = torch.cat(rows)
    if isinstance(network, FusedNetwork):
        return change_pretrained_branches(
            network,
            blueprint,
            find_vocabulary_obstacle,
            lambda branch: _trim_tokens(
                _require_pretrained(branch.network, "trim_vocabulary"),
                branch.blueprint,
                branch.rows(x),
                share,
                fine_tuning.tokenizers[branch.place.part.name],
            ),
        )
    pretrained = _require_pretrained(network, "trim_vocabulary")
    return _trim_tokens(pretrained, blueprint, x, share, next(iter(fine_tuning.tokenizers.values())))


def _trim_tokens(
    network: PretrainedNetwork, blueprint: Blueprint, x_BT: torch.Tensor, share: float, tokenizer: str
) -> tuple[nn.Module, Blueprint]:
    essential = find_essential_tokens(tokenizer)
    kept_K = select_tokens(x_BT, share, essential)
    return trim_vocabulary(network, blueprint, kept_K, essential.special)


def _require_pretrained(network: nn.Module, option: str) -> PretrainedNetwork:
    if isinstance(network, PretrainedNetwork):
        return network
    raise RecipeInvalid(
        f"`{option}` of a candidate needs a pretrained network",
        required="a network of kind pretrained",
        where="compression.candidates of the recipe",
        remedy="leave the option out",
    )


def _require_teachable(teacher: Model, student: Model, distillation: Distillation) -> None:
    obstacle = find_distillation_obstacle(teacher, student, distillation)
    if obstacle is not None:
        raise RecipeInvalid(
            f"a candidate cannot learn from the trained network: {obstacle}",
            required="features or attention that both networks have",
            where="compression.distill of the recipe",
            remedy="change `distill` (its `weight` works for any network), or the candidate's `student`",
        )


def _sparsify(network: nn.Module, sparsification: Sparsification, fine_tuning: FineTuning) -> nn.Module:
    """A sparse copy of `network`. Each round has its share of the epochs, the last one has all."""
    sparse, loop = copy.deepcopy(network), fine_tuning.compression.fine_tune
    num_rounds = sparsification.rounds
    for number in range(1, num_rounds + 1):
        with fixed_masks(sparse, _round_masks(number, sparse, sparsification)):
            _train(sparse, fine_tuning, _loop_of_round(loop, num_rounds) if number < num_rounds else loop)
    return sparse


def _round_masks(number: int, network: nn.Module, sparsification: Sparsification) -> Masks:
    """The weights that stay in this round; the last round has the final density."""
    if sparsification.n_of_m is not None:
        n, m = sparsification.n_of_m
        num_kept = round(scheduled_density(number, sparsification.rounds, last=n / m) * m)
        return compute_n_of_m_masks(network, num_kept, m)
    assert sparsification.density is not None
    density = scheduled_density(number, sparsification.rounds, last=sparsification.density)
    return compute_masks(network, density, sparsification.criterion)


def _loop_of_round(loop: Loop, num_rounds: int) -> Loop:
    return loop.model_copy(update={"epochs": max(loop.epochs // num_rounds, 1)})


def _train(network: nn.Module, fine_tuning: FineTuning, loop: Loop) -> None:
    """Train `network` in place, by distillation if the recipe asks for it."""
    distillation = fine_tuning.compression.distill
    if distillation is None:
        placement = Placement(fine_tuning.device)
    else:
        distance = target_distance(fine_tuning.train.y)
        distiller = create_distiller(fine_tuning.teacher, distillation, distance=distance)
        placement = Placement(fine_tuning.device, parallelize=distiller)
    rows = fine_tuning.train
    if distillation is not None and fine_tuning.unlabelled is not None:
        rows = add_unlabelled(rows, fine_tuning.unlabelled)
    use_channels_last(fine_tuning.teacher).to(fine_tuning.device)
    try:
        train(
            network,
            TrainingData(rows, fine_tuning.val, fine_tuning.seed, fine_tuning.measure),
            loop,
            placement=placement,
            hooks=TrainingHooks(on_epoch=fine_tuning.on_epoch),
        )
    finally:
        move_to_cpu(fine_tuning.teacher)
