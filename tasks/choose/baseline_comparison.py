"""Compares the chosen candidate with the baselines on the test split, row by row."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq

from bloomery.data_contracts.records.records import BaselineComparison, Candidate, Candidates
from bloomery.data_contracts.records.scores import Score
from bloomery.models.evaluation.baselines import CONSTANT
from bloomery.tasks.evaluation.baseline_text import metric_part
from bloomery.tasks.evaluation.held_out import ground_truth, predicted_values
from bloomery.tasks.evaluation.scoring import compare_predictions
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking import mlflow_runs


def compare_with_baselines(candidates: Candidates, candidate: Candidate) -> tuple[BaselineComparison, ...]:
    """Compares the candidate with each baseline that was fitted, by the score of the recipe."""
    trained = candidates.trained
    fitted = [baseline for baseline in trained.baselines if baseline.predictions_uri and baseline.score]
    if not fitted:
        return ()
    table = pq.read_table(settings().path(candidate.predictions_uri))
    truth, predictions = ground_truth(trained.dataset, table), predicted_values(trained.dataset, table)
    comparisons = []
    for baseline in fitted:
        assert baseline.predictions_uri is not None
        assert baseline.score is not None
        before = np.load(settings().path(baseline.predictions_uri), allow_pickle=False)
        comparisons.append(
            BaselineComparison(
                name=baseline.name,
                score=baseline.score,
                degradation=compare_predictions(trained.score, truth, before, predictions),
                is_constant=baseline.name in CONSTANT,
            )
        )
    return tuple(comparisons)


def log_comparisons(run_id: str, score: Score, comparisons: Sequence[BaselineComparison]) -> None:
    """Logs how much better the candidate is than each baseline, with the limits of the 95% interval."""
    values: dict[str, float] = {}
    for comparison in comparisons:
        worse, name = comparison.degradation, f"gain_over_{metric_part(comparison.name)}"
        values |= {name: -worse.value, f"{name}_low": -worse.high, f"{name}_high": -worse.low}
    if values:
        mlflow_runs.log_metrics(run_id, values)
