"""An MLflow run of the train stage, and what it trains."""

from __future__ import annotations

from typing import NamedTuple

from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.scores import Score, default_score
from bloomery.models.features.encoder import Encoder
from bloomery.models.training.config import Training
from bloomery.tasks.train.fit import TrainingSplits


class TrainingRun(NamedTuple):
    """The arguments that all functions share that log about one training."""

    run_id: str
    dataset: Dataset
    encoder: Encoder
    splits: TrainingSplits
    training: Training

    @property
    def score(self) -> Score:
        """The score that selects the best epoch."""
        return self.training.score or default_score(self.dataset.task)
