"""An MLflow run of the train stage, and what it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.scores import Score, default_score
from bloomery.models.features.encoder import Encoder
from bloomery.models.training.config import Training
from bloomery.tasks.train import fit

if TYPE_CHECKING:
    from bloomery.models.training.optimization.score_measure import ScoreMeasure


class TrainingRun(NamedTuple):
    """The arguments that all functions share that log about one training."""

    run_id: str
    dataset: Dataset
    encoder: Encoder
    splits: fit.TrainingSplits
    training: Training

    @property
    def score(self) -> Score:
        """The score that selects the best epoch."""
        return self.training.score or default_score(self.dataset.task)

    @property
    def measure(self) -> ScoreMeasure | None:
        """The measure of the recipe's score; None of the default score, in standard units."""
        return fit.score_measure(self.dataset, self.training, self.splits)

    @property
    def score_unit(self) -> float:
        """The factor that converts a validation score to the label's units; 1 where `measure` has done so."""
        from bloomery.models.inference.outputs import score_unit

        return score_unit(self.encoder) if self.measure is None else 1.0
