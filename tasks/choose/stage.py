"""Stage `choose`: picks the best candidate within the budget."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.records.records import Candidates, Choice
from bloomery.models.compression.budget import Budget
from bloomery.models.profiling.latency import ComparedFiles, take_batch
from bloomery.tasks.choose import ranking
from bloomery.tasks.choose.baseline_comparison import compare_with_baselines, log_comparisons
from bloomery.tasks.choose.budget_verdicts import SubgroupDegradations, decide_candidate, no_candidate_error
from bloomery.tasks.evaluation.held_out import decode_column, ground_truth
from bloomery.tasks.evaluation.scoring import degradation_by_class, degradation_by_slice
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs


def _run_exists(choice: Choice) -> bool:
    return mlflow_runs.run_exists(choice.run_id)


@stage(is_complete=_run_exists, publish=ranking.publish_ranking)
def choose(out: Output, candidates: Candidates, budget: Budget) -> Choice:
    """Picks the best candidate by the budget's objective among those that satisfy all its limits.

    An MLflow run below the training run gets a plot and a ranked table of all candidates, even if none is chosen.

    Raises:
        NoCandidate: no candidate satisfies the budget; the message lists the violations of each, the closest one and
            the limits to relax.
        EngineMissing: the objective weighs energy, and this machine has no energy counter.
    """
    candidates = _measure_energy(_measure_latency(candidates, budget.batch_size), budget)
    trained = candidates.trained
    decision = decide_candidate(candidates, budget, _subgroup_degradations(candidates, budget))
    comparisons = () if decision.best is None else compare_with_baselines(candidates, decision.best)
    tags = {"mlflow.parentRunId": trained.run_id, "chosen": decision.best.name if decision.best else "none"}
    with mlflow_runs.logged_run(trained.dataset.valid_rows.contract.name, "choice", out.key, tags) as run_id:
        ranking.log_ranking(run_id, candidates, budget, decision, out.path("candidates.png"))
        log_comparisons(run_id, trained.score, comparisons)
        if decision.best is None:
            raise no_candidate_error(decision, budget, trained.score, run_id)
    return Choice(
        candidate=decision.best,
        verdicts=decision.verdicts,
        run_id=run_id,
        plot_uri=out.uri("candidates.png"),
        comparisons=comparisons,
        candidates=candidates,
        # Times differ from run to run, so only the choice itself counts.
        digest=digest_of_document([decision.best.name, decision.best.sha256, candidates.digest]),
    )


def _measure_latency(candidates: Candidates, batch_size: int) -> Candidates:
    """Adds the latency for `batch_size` rows to each candidate, unless `compress` has measured it."""
    if all(
        any(latency.batch_size == batch_size for latency in candidate.latencies) for candidate in candidates.candidates
    ):
        return candidates
    from bloomery.models.profiling.latency import compare_latency

    latencies = compare_latency(
        _compared_files(candidates),
        [_read_batch(candidates, batch_size)],
        rounds=max(candidate.latency.num_rounds for candidate in candidates.candidates),
    )
    updated = tuple(
        candidate.model_copy(update={"latencies": (*candidate.latencies, *latencies[candidate.name])})
        for candidate in candidates.candidates
    )
    return candidates.model_copy(update={"candidates": updated})


def _measure_energy(candidates: Candidates, budget: Budget) -> Candidates:
    """Adds the energy for a batch of the budget's size to each candidate, if the objective weighs energy."""
    if not budget.objective.energy:
        return candidates
    from bloomery.models.profiling.energy import compare_energy
    from bloomery.models.profiling.rapl import open_energy_counter

    energies = compare_energy(
        _compared_files(candidates),
        _read_batch(candidates, budget.batch_size),
        open_energy_counter().read,
    )
    updated = tuple(
        candidate.model_copy(update={"energy": energies[candidate.name]}) for candidate in candidates.candidates
    )
    return candidates.model_copy(update={"candidates": updated})


def _compared_files(candidates: Candidates) -> ComparedFiles:
    return ComparedFiles(
        {candidate.name: settings().path(candidate.uri) for candidate in candidates.candidates},
        baseline=candidates.baseline,
        row_by_row={candidate.name for candidate in candidates.candidates if candidate.is_row_by_row},
        device=candidates.candidates[0].latency.device,
    )


def _read_batch(candidates: Candidates, batch_size: int) -> np.ndarray:
    from bloomery.models.training.data.batches import read_examples

    dataset = candidates.trained.dataset
    test = read_examples(settings().path(dataset.test.uri), dataset.key, dataset.layout)
    return take_batch(test.x.numpy(), batch_size)


def _subgroup_degradations(candidates: Candidates, budget: Budget) -> dict[str, SubgroupDegradations]:
    """The degradations by slice and by class that the budget limits, by candidate; the baseline has none."""
    has_slice_limit = budget.slice_drop is not None or budget.slice_rise is not None
    columns = candidates.trained.slice_columns if has_slice_limit else ()
    if not columns and budget.class_drop is None:
        return {}
    dataset = candidates.trained.dataset
    tables = {
        candidate.name: pq.read_table(settings().path(candidate.predictions_uri)) for candidate in candidates.candidates
    }
    baseline = tables[candidates.baseline]
    truth, before = ground_truth(dataset, baseline), decode_column(dataset, baseline["prediction"])
    degradations = {}
    for name, table in tables.items():
        if name != candidates.baseline:
            after = decode_column(dataset, table["prediction"])
            degradations[name] = SubgroupDegradations(
                degradation_by_slice(dataset, columns, truth, before, after),
                degradation_by_class(dataset, truth, before, after) if budget.class_drop is not None else (),
            )
    return degradations
