"""Computes a recipe's score from the outputs of a network, in the units of the label.

Shapes: N rows, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bloomery.data_contracts.records.scores import Score, default_score
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.data_contracts.serving.entities import code_tags
from bloomery.models.evaluation.scores import require_score
from bloomery.models.features.labels import StandardUnits
from bloomery.models.training.optimization.loss import split_logits


@dataclass(frozen=True)
class ScoreMeasure:
    """Scores outputs (N, K) for labels (N,), or sets or several numbers (N, K).

    `units` are those of a regression with one label; several numbers are scored in standard units. `tags` are those of
    a tagging task, whose outputs are for each token (N, T, K), or already the positions of the best tags (N, T).
    """

    score: Score
    units: StandardUnits | None = None
    tags: tuple[int | str, ...] = ()

    def __call__(self, outputs_NK: torch.Tensor, y_N: torch.Tensor) -> float:
        """Returns the score of validation rows.

        Raises:
            DataUnfit: the score does not exist for these labels.
        """
        if self.score.facts.task == "multioutput":
            return require_score(self.score, y_N.double().numpy(), outputs_NK.double().numpy(), "validation")
        if self.score.facts.task == "multitask":
            shares_NMK = split_logits(outputs_NK, y_N.shape[1]).double().softmax(dim=2)
            return require_score(self.score, y_N.numpy(), shares_NMK.numpy(), "validation")
        if self.score.facts.task == "tagging":
            positions_NT = outputs_NK.argmax(dim=2) if outputs_NK.dim() == 3 else outputs_NK
            truth_NT = code_tags(self.tags, y_N.numpy())
            codes_NT = code_tags(self.tags, positions_NT.numpy())
            return require_score(self.score, truth_NT, codes_NT, "validation")
        if self.units is None:
            is_multilabel = self.score.facts.task == "multilabel"
            shares_NK = outputs_NK.double().sigmoid() if is_multilabel else torch.softmax(outputs_NK.double(), dim=1)
            truth_N = y_N.to(torch.int64)
            return require_score(self.score, truth_N.numpy(), shares_NK.numpy(), "validation")
        mean, deviation = self.units.mean, self.units.deviation
        truth_N, values_N = (mean + deviation * values.double() for values in (y_N, outputs_NK[:, 0]))
        return require_score(self.score, truth_N.numpy(), values_N.numpy(), "validation")


def build_measure(
    score: Score | None, task: Task, units: StandardUnits | None, classes: tuple[int | str, ...] = ()
) -> ScoreMeasure | None:
    """The measure of a recipe's score; None of the default score, which the loop computes itself in standard units.

    The mean over several outputs is no sum over rows, so the loop does not compute it.
    """
    if task in ("multioutput", "multitask"):
        return ScoreMeasure(score or default_score(task))
    if score is None or score == default_score(task):
        return None
    return ScoreMeasure(score, units, classes if task == "tagging" else ())
