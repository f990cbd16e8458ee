"""choose: the best candidate within the budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bloomery.data_contracts.documents.digests import digest_of_document
from bloomery.data_contracts.records.records import Candidates, Choice
from bloomery.models.compression.budget import Budget
from bloomery.models.features.encoder import read_encoder
from bloomery.tasks.choose import ranking
from bloomery.tasks.choose.budget_verdicts import SubgroupDegradations, decide_candidate, no_candidate_error
from bloomery.tasks.evaluation.scoring import GroundTruth, degradation_by_class, degradation_by_slice
from bloomery.tasks.evaluation.slices import bootstrap_order
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs


def _run_is_kept(record: Choice) -> bool:
    return mlflow_runs.run_exists(record.run_id)


@stage(is_whole=_run_is_kept, present=ranking.publish_ranking)
def choose(out: Output, options: Candidates, budget: Budget) -> Choice:
    """The candidate that is best by the budget's objective among those that pass all its limits.

    Afterwards a run below the training's has all candidates in a picture and in a ranked table, also if none passes.

    Raises:
        NoCandidate: none passes; the message says what each one failed, which came closest and what to relax.
        EngineMissing: the objective weighs energy, and this machine does not tell it.
    """
    options = _weighed_as_asked(_timed_as_asked(options, budget.batch_size), budget)
    trained = options.trained
    decision = decide_candidate(options, budget, _parts(options, budget))
    tags = {"mlflow.parentRunId": trained.run_id, "chosen": decision.best.name if decision.best else "none"}
    with mlflow_runs.logged_run(trained.dataset.valid_rows.contract.name, "choice", out.key, tags) as run_id:
        ranking.log_ranking(run_id, options, budget, decision, out.path("candidates.png"))
        if decision.best is None:
            raise no_candidate_error(decision, budget, trained.dataset.task, run_id)
    return Choice(
        candidate=decision.best,
        verdicts=decision.verdicts,
        run_id=run_id,
        plot_uri=out.uri("candidates.png"),
        candidates=options,
        # Times differ from run to run; the choice itself counts.
        digest=digest_of_document([decision.best.name, decision.best.sha256, options.digest]),
    )


def _timed_as_asked(options: Candidates, batch: int) -> Candidates:
    """The same candidates, with their latency for `batch` rows too, timed now if it was not before."""
    if all(any(one.batch_size == batch for one in candidate.latencies) for candidate in options.candidates):
        return options
    from bloomery.models.profiling.latency import compare_latency

    timed = compare_latency(
        _files(options),
        [_batch(options, batch)],
        baseline=options.baseline,
        rounds=max(one.latency.num_rounds for one in options.candidates),
        row_by_row=_row_by_row(options),
    )
    candidates = tuple(
        one.model_copy(update={"latencies": (*one.latencies, *timed[one.name])}) for one in options.candidates
    )
    return options.model_copy(update={"candidates": candidates})


def _weighed_as_asked(options: Candidates, budget: Budget) -> Candidates:
    """The same candidates, with the energy that the budget's batch takes them, if its objective asks for it."""
    if not budget.objective.energy:
        return options
    from bloomery.models.profiling.energy import compare_energy
    from bloomery.models.profiling.rapl import open_energy_counter

    found = compare_energy(
        _files(options),
        _batch(options, budget.batch_size),
        open_energy_counter().read,
        baseline=options.baseline,
        row_by_row=_row_by_row(options),
    )
    candidates = tuple(one.model_copy(update={"energy": found[one.name]}) for one in options.candidates)
    return options.model_copy(update={"candidates": candidates})


def _files(options: Candidates) -> dict[str, Path]:
    return {one.name: settings().path(one.uri) for one in options.candidates}


def _batch(options: Candidates, size: int) -> np.ndarray:
    from bloomery.models.profiling.latency import take_batch
    from bloomery.models.training.data.batches import read_examples

    dataset = options.trained.dataset
    test = read_examples(settings().path(dataset.test.uri), dataset.key, dataset.layout)
    return take_batch(test.x.numpy(), size)


def _row_by_row(options: Candidates) -> set[str]:
    return {one.name for one in options.candidates if one.is_row_by_row}


def _parts(options: Candidates, budget: Budget) -> dict[str, SubgroupDegradations]:
    """How much worse each candidate is by slice and by class, as far as the budget limits it. Against itself fp32 is
    not judged."""
    columns = options.trained.slice_columns if budget.slice_drop is not None or budget.slice_rise is not None else ()
    if not columns and budget.class_drop is None:
        return {}
    dataset = options.trained.dataset
    answers = {one.name: pq.read_table(settings().path(one.predictions_uri)) for one in options.candidates}
    before = answers[options.baseline]
    keys = before[dataset.key].combine_chunks()
    if dataset.task == "classification":
        order = np.arange(len(keys))
    else:
        order = bootstrap_order(dataset, read_encoder(settings().path(dataset.encoder_uri)).features, keys)
    rows = GroundTruth(keys, _coded(before, "truth", options), order)
    theirs = _coded(before, "answer", options)
    found = {}
    for one in options.candidates:
        if one.name != options.baseline:
            ours = _coded(answers[one.name], "answer", options)
            found[one.name] = SubgroupDegradations(
                degradation_by_slice(dataset, columns, rows, theirs, ours),
                degradation_by_class(dataset, rows, theirs, ours) if budget.class_drop is not None else (),
            )
    return found


def _coded(answers: pa.Table, column: str, options: Candidates) -> np.ndarray:
    """Positions of classes (N,), or figures (N,)."""
    dataset = options.trained.dataset
    if dataset.task == "regression":
        return np.asarray(answers[column].to_numpy())
    values = answers[column].combine_chunks()
    return np.asarray(pc.index_in(values, pa.array(list(dataset.classes), values.type)).to_numpy(zero_copy_only=False))
