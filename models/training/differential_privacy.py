"""Differentially private training: DP-SGD.

Source: Abadi et al. 2016, "Deep Learning with Differential Privacy", algorithm 1; Mironov et al. 2019, "Renyi
Differential Privacy of the Sampled Gaussian Mechanism" (the accountant).

Shapes: B rows of a batch, K outputs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from bloomery.data_contracts.errors import RecipeInvalid, TrainingDiverged
from bloomery.models.training.config import Loop, Privacy
from bloomery.models.training.data.batches import Examples, ExampleSource, TrainingData
from bloomery.models.training.loop import EpochResult, evaluate
from bloomery.models.training.optimization.loss import build_loss
from bloomery.models.training.optimization.optimizer import build_schedule

if TYPE_CHECKING:
    from opacus import GradSampleModule


class PrivacySpent(NamedTuple):
    """The privacy guarantee of each training row, and the noise in units of the clipping norm."""

    epsilon: float
    delta: float
    noise: float


def train_privately(
    network: nn.Module,
    data: TrainingData,
    loop: Loop,
    privacy: Privacy,
    *,
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None,
) -> tuple[list[EpochResult], PrivacySpent]:
    """Trains `network` in place by DP-SGD; it ends in evaluation mode with the weights of its last epoch.

    Each step samples every row with equal probability (Poisson sampling), so a batch has `batch_size` rows on average.
    Per-row gradients are clipped, and noise is added to their sum. Sampling and noise draw from the seed of `data`. The
    validation split is not protected, so no epoch is selected by it.

    Raises:
        RecipeInvalid: the network mixes rows (batch normalisation) or has layers without per-row gradients; or delta is
            too large for privacy, or epsilon too small for training; or the training split exceeds the memory limit.
        TrainingDiverged: the loss is not finite.
    """
    from opacus.accountants import RDPAccountant
    from opacus.optimizers import DPOptimizer

    train_split = _require_in_memory(data.train)
    num_rows = len(train_split.y)
    _require_valid_delta(privacy, num_rows)
    _require_independent_rows(network)
    sample_rate = min(loop.batch_size / num_rows, 1.0)
    steps_of_epoch = max(round(1 / sample_rate), 1)
    noise = _noise_multiplier(privacy, sample_rate, loop.epochs * steps_of_epoch)
    wrapped = _with_row_gradients(network)
    adamw = torch.optim.AdamW(wrapped.parameters(), lr=loop.learning_rate, weight_decay=loop.weight_decay)
    generator = torch.Generator().manual_seed(data.seed)
    optimizer = DPOptimizer(
        adamw,
        noise_multiplier=noise,
        max_grad_norm=privacy.clip_norm,
        expected_batch_size=loop.batch_size,
        loss_reduction="sum",
        generator=generator,
    )
    schedule = build_schedule(adamw, loop, loop.epochs * steps_of_epoch)
    loss_of_rows, accountant = build_loss(loop, train_split.y), RDPAccountant()
    history = []
    # Torch warns at the first layer, since its input needs no gradient.
    warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
    for number in range(1, loop.epochs + 1):
        rate = float(schedule.get_last_lr()[0])
        wrapped.train()
        loss_sum, num_seen = 0.0, 0
        for x, y in _sample_batches(train_split, sample_rate, steps_of_epoch, generator):
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of_rows(wrapped(x), y)
            loss.backward()
            optimizer.step()
            schedule.step()
            accountant.step(noise_multiplier=noise, sample_rate=sample_rate)
            loss_sum, num_seen = loss_sum + loss.item(), num_seen + len(y)
        val_loss, val_score = evaluate(network, data.val, measure=data.measure)
        _require_finite(loss_sum + val_loss, number, loop)
        history.append(EpochResult(number, loss_sum / max(num_seen, 1), val_loss, val_score, rate))
        on_epoch(history[-1])
    _remove_hooks(wrapped)
    network.eval()
    return history, PrivacySpent(float(accountant.get_epsilon(privacy.delta)), privacy.delta, noise)


def _require_in_memory(split: ExampleSource) -> Examples:
    if isinstance(split, Examples):
        return split
    raise RecipeInvalid(
        f"private training samples rows at random, and the {split.num_rows:,} training rows exceed the memory limit",
        required="a training split that fits into memory",
        where="the recipe's training.privacy",
        remedy="use fewer rows, or train without `privacy`",
    )


def _require_valid_delta(privacy: Privacy, num_rows: int) -> None:
    """Source: Dwork & Roth 2014, "The Algorithmic Foundations of Differential Privacy", section 2.3."""
    if num_rows < 2 or privacy.delta * num_rows >= 1:
        raise RecipeInvalid(
            f"delta {privacy.delta:g} allows complete rows to leak from a training split of {num_rows:,} rows",
            required=f"a delta below 1 / number of training rows, here {1 / max(num_rows, 1):.2g}",
            where="the recipe's training.privacy.delta",
            remedy="lower delta, usually to a tenth of that, or train on more rows",
        )


def _noise_multiplier(privacy: Privacy, sample_rate: float, num_steps: int) -> float:
    """The smallest noise multiplier that keeps epsilon over `num_steps` steps."""
    from opacus.accountants.utils import get_noise_multiplier

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Opacus warns about Renyi orders that it tries and discards
            return float(
                get_noise_multiplier(
                    target_epsilon=privacy.epsilon,
                    target_delta=privacy.delta,
                    sample_rate=sample_rate,
                    steps=num_steps,
                    accountant="rdp",
                )
            )
    except ValueError as failure:
        raise RecipeInvalid(
            f"no noise achieves epsilon {privacy.epsilon:g} with delta {privacy.delta:g} in {num_steps:,} steps that "
            f"sample {sample_rate:.1%} of the rows each",
            required="a larger epsilon or delta, fewer epochs, smaller batches or more rows",
            where="the recipe's training.privacy",
            remedy="raise epsilon; usual values are 1 to 10",
        ) from failure


def _with_row_gradients(network: nn.Module) -> GradSampleModule:
    """Wraps the network so that it computes per-row gradients.

    Raises:
        RecipeInvalid: a layer does not support per-row gradients.
    """
    from opacus import GradSampleModule

    try:
        return GradSampleModule(network, loss_reduction="sum")
    except NotImplementedError as failure:
        raise _unsuitable(f"a layer has no per-row gradients: {str(failure)[:200]}") from failure


def _sample_batches(
    examples: Examples, sample_rate: float, num_batches: int, generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for _ in range(num_batches):
        rows = torch.nonzero(torch.rand(len(examples.y), generator=generator) < sample_rate).squeeze(1)
        yield examples.x.index_select(0, rows), examples.y.index_select(0, rows)


def _require_independent_rows(network: nn.Module) -> None:
    from opacus.validators import ModuleValidator

    problems = ModuleValidator.validate(network, strict=False)
    if problems:
        raise _unsuitable(str(problems[0]).splitlines()[0][:300])
    if any(isinstance(module, nn.RNNBase) for module in network.modules()):
        raise _unsuitable("recurrent layers of torch have no per-row gradients")


def _unsuitable(problem: str) -> RecipeInvalid:
    return RecipeInvalid(
        f"this network cannot be trained privately: {problem}",
        required="layers that process rows independently and support per-row gradients",
        where="the recipe's training.privacy and model",
        remedy="use a lenet, an mlp with `norm: none`, a transformer or a gpt; no recurrent layers or batch norm",
    )


def _remove_hooks(wrapped: GradSampleModule) -> None:
    """Removes the hooks and per-row gradients, which would otherwise be exported."""
    wrapped.remove_hooks()
    for parameter in wrapped.parameters():
        for name in ("grad_sample", "summed_grad", "_forward_counter"):
            if hasattr(parameter, name):
                delattr(parameter, name)


def _require_finite(loss: float, epoch: int, loop: Loop) -> None:
    if not math.isfinite(loss):
        raise TrainingDiverged(
            f"the loss of epoch {epoch} is {loss}",
            required="a finite loss",
            where=f"private training, learning rate {loop.learning_rate:g}",
            remedy="lower `learning_rate` in the recipe",
        )
