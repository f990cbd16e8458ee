"""Checks before a training that the recipe's score exists for the splits on which it is computed."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.scores import default_score
from bloomery.data_contracts.serving.entities import code_tags
from bloomery.models.evaluation.scores import require_defined
from bloomery.models.features.encoder import ENCODED_LABEL
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.train.fit import TrainingSplits


def require_defined_score(dataset: Dataset, training: Training, splits: TrainingSplits) -> None:
    """Requires that the score exists for the labels of the validation and the test split.

    Raises:
        DataUnfit: it does not, such as AUC where all rows are of one class.
    """
    from bloomery.models.training.data.streaming import label_values

    score = training.score or default_score(dataset.task)
    for split, uri in (("validation", dataset.val.uri), ("test", dataset.test.uri)):
        labels = pq.read_table(settings().path(uri), columns=[ENCODED_LABEL]).column(0)
        labels_N = label_values(labels.combine_chunks())
        if splits.units is not None:
            labels_N = splits.units.mean + splits.units.deviation * labels_N.astype(np.float64)
        if dataset.task == "tagging":
            labels_N = code_tags(dataset.classes, labels_N)
        require_defined(score, labels_N, len(dataset.classes), split)
