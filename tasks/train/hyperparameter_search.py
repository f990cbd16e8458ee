"""Searches hyperparameters with Optuna; each trial is an MLflow run."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bloomery.data_contracts.errors import BloomeryError, EngineMissing, TrainingDiverged
from bloomery.data_contracts.records.records import Dataset, InitialWeights
from bloomery.data_contracts.records.scores import Score, default_score
from bloomery.models.networks.config import NOT_MULTILABEL, BoostedTrees, Model, TabularEnsemble
from bloomery.models.training import search_space as spaces
from bloomery.models.training.config import Range, Search, Training
from bloomery.tasks.infrastructure.device import configure_processor
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from optuna import Study, Trial

    from bloomery.models.training.loop import EpochResult


class SearchJob(NamedTuple):
    """The arguments of a search, and of each of its trials."""

    key: str  # of the train stage
    run_id: str  # of the stage, the parent of the trials' runs
    dataset: Dataset
    model: Model
    training: Training
    initial_weights: InitialWeights | None
    score_unit: float = 1.0  # converts a score to the units of the label

    @property
    def score(self) -> Score:
        """The score that the search optimizes."""
        return self.training.score or default_score(self.dataset.task)


class SearchResult(NamedTuple):
    """Network and training of the best trial, its validation score, and the number of completed trials."""

    model: Model
    training: Training
    score: float
    num_trials: int
    first_score: float  # of the recipe without changes, or of the first network of `auto`


def run_search(job: SearchJob) -> SearchResult:
    """Runs trials in the recipe's search space and returns the best.

    The first trial is the recipe without changes. Trials are stored in the state folder: a killed search continues
    with the missing trials and repeats the one that was interrupted. Sequential searches with equal arguments run equal
    trials.

    Raises:
        TrainingDiverged: no trial has a finite score.
        RecipeInvalid: a network of the space cannot be built.
        EngineMissing: all processes of the search have died.
    """
    options = _search_options(job.training)
    study = _open_study(job)
    _requeue_interrupted(study)
    mlflow_runs.adopt_runs(job.dataset.valid_rows.contract.name, job.key, job.run_id, tag="trial")
    if not study.trials:
        for first in _first_trials(job):
            study.enqueue_trial(first)
    if options.parallel == 1:
        _run_trials(job)
    else:
        _run_in_processes(job, study, options)
    completed = _completed_trials(study)
    if not completed:
        raise TrainingDiverged(
            f"none of {len(study.trials)} trials has a finite score",
            required="a finite loss in at least one trial",
            where="the recipe's training.search",
            remedy="lower `training.learning_rate` in the space and in the recipe, and check the ranges of the data",
        )
    model, training = _apply_parameters(job, study.best_trial.params)
    return SearchResult(
        model, training, study.best_value * job.score_unit, len(completed), completed[0].value * job.score_unit
    )


def log_search(run_id: str, result: SearchResult) -> None:
    metrics = {
        "search_best": result.score,
        "search_first": result.first_score,
        "search_trials": result.num_trials,
    }
    mlflow_runs.log_metrics(run_id, metrics)


def _run_in_processes(job: SearchJob, study: Study, options: Search) -> None:
    """Runs trials in several processes. An error in one ends all; trials of a process that dies go to the others."""
    context = multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    workers = [context.Process(target=_run_child, args=(job, number, failures)) for number in range(options.parallel)]
    try:
        for worker in workers:
            worker.start()
        while running := [worker.sentinel for worker in workers if worker.is_alive()]:
            multiprocessing.connection.wait(running, timeout=2)  # until any process ends
            if not failures.empty():
                raise failures.get()
            _report_progress(study, options)
        if not failures.empty():
            raise failures.get()
    finally:
        for worker in workers:
            if worker.pid is not None:
                worker.terminate()
                worker.join()
    codes = [worker.exitcode for worker in workers]
    if all(codes):
        raise EngineMissing(
            f"the processes of the search ended with exit codes {', '.join(map(str, codes))}",
            required="at least one that finishes",
            where="the recipe's training.search",
            remedy="run again: finished trials are kept; exit code -9 means too little memory, so lower `parallel`",
        )


def _run_child(job: SearchJob, number: int, failures: SimpleQueue[BloomeryError]) -> None:
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    try:
        _run_trials(job, number)
    except BloomeryError as failure:
        failures.put(failure)
        raise SystemExit(1) from None


def _exit_with_parent() -> None:
    """Ends this process when its parent dies: a killed search must not continue beside its restart."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def delete_search(key: str) -> None:
    """Deletes the trials of a stage, once its output is complete."""
    shutil.rmtree(_folder(key), ignore_errors=True)


def _folder(key: str) -> Path:
    return settings().home / "searches" / key


def _search_options(training: Training) -> Search:
    return training.search or Search(space={})


def _open_study(job: SearchJob, worker: int = 0) -> Study:
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    folder = _folder(job.key)
    folder.mkdir(parents=True, exist_ok=True)
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        storage=storage,
        study_name=job.key,
        direction="minimize" if job.score.is_error else "maximize",
        load_if_exists=True,
    )
    # The seed depends on the number of trials, since a resumed search would repeat its first trials otherwise.
    study.sampler = optuna.samplers.TPESampler(
        seed=(job.training.seed + len(study.trials) + 7919 * worker) % 2**32, constant_liar=True
    )
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    return study


def _requeue_interrupted(study: Study) -> None:
    """Fails the trials that a killed process has left running, and queues them again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _completed_trials(study: Study) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=[TrialState.COMPLETE])


def _candidate_networks(job: SearchJob) -> tuple[Model, ...]:
    if job.model.kind != "auto":
        return (job.model,)
    networks = spaces.default_networks(job.dataset.layout, job.score)
    has_several = job.dataset.task in ("multilabel", "multioutput", "multitask")
    return tuple(network for network in networks if not (has_several and network.kind in NOT_MULTILABEL))


def _first_trials(job: SearchJob) -> list[dict[str, Any]]:
    """The recipe without changes; with `auto`, each default network without changes."""
    networks = _candidate_networks(job)
    if len(networks) == 1:
        return [_recipe_values(job, networks[0])]
    return [{"network": position, **_recipe_values(job, network)} for position, network in enumerate(networks)]


def _recipe_values(job: SearchJob, network: Model) -> dict[str, Any]:
    """The recipe's values at the paths of the space, where the space contains them."""
    document = {"model": network.model_dump(), "training": job.training.model_dump()}
    values: dict[str, Any] = {}
    for path, choices in spaces.search_space(network, _search_options(job.training).space).items():
        value: Any = document
        for step in path.split("."):
            value = value[step]
        if isinstance(choices, Range):
            if value is not None and choices.low <= value <= choices.high:
                values[_parameter_name(network, path)] = value
            continue
        matches = [
            choice
            for choice in choices
            if spaces.apply_values(network, job.training, {path: choice}) == (network, job.training)
        ]
        values |= {_parameter_name(network, path): spaces.encode_choice(choice) for choice in matches[:1]}
    return values


def _parameter_name(network: Model, path: str) -> str:
    """Optuna's name of a parameter; parameters of different networks are kept apart."""
    return f"{network.kind}: {path}" if path.startswith("model.") else path


def _run_trials(job: SearchJob, worker: int = 0) -> None:
    """Runs trials until there are as many as requested; several processes may do so at a time."""
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    study, options = _open_study(job, worker), _search_options(job.training)
    final_states = (TrialState.COMPLETE, TrialState.PRUNED)
    if len(study.get_trials(states=final_states)) >= options.trials:
        return
    splits = fit.read_splits(job.dataset)
    study.optimize(
        lambda trial: _run_trial(trial, job, splits),
        n_trials=options.trials,
        catch=(TrainingDiverged,),
        callbacks=[
            MaxTrialsCallback(options.trials, states=final_states),
            lambda study, _: _report_progress(study, options),
        ],
    )


def _report_progress(study: Study, options: Search) -> None:
    completed = _completed_trials(study)
    best = f"best {study.best_value:.4g}" if completed else ""
    emit(Progress("train", min(len(study.trials), options.trials), options.trials, f"search, {best}"))


def _run_trial(trial: Trial, job: SearchJob, splits: fit.TrainingSplits) -> float:
    """Trains one trial and returns its validation score.

    Raises:
        TrialPruned: the trial is behind the others. Its MLflow run ends as FINISHED.
    """
    import optuna

    model, training = _apply_parameters(job, _suggest_parameters(trial, job))
    epochs = _search_options(job.training).epochs
    training = training if epochs is None else training.model_copy(update={"epochs": epochs})
    configure_processor(training)

    scores: list[tuple[int, dict[str, float]]] = []

    def on_epoch(epoch: EpochResult) -> None:
        scores.append((epoch.number, {"val_score": epoch.val_score * job.score_unit, "val_loss": epoch.val_loss}))
        trial.report(epoch.val_score, epoch.number)
        if trial.should_prune():
            raise optuna.TrialPruned

    tags = {"mlflow.parentRunId": job.run_id, "trial": str(trial.number)}
    pruned: optuna.TrialPruned | None = None
    score = float("nan")
    name = job.dataset.valid_rows.contract.name
    with mlflow_runs.logged_run(name, f"trial-{trial.number}", job.key, tags) as run_id:
        mlflow_runs.log_params(run_id, {"kind": model.kind, **trial.params})
        try:
            score, last_step = _train_trial(job, model, training, splits, on_epoch)
        except optuna.TrialPruned as failure:
            pruned = failure  # raised after the run has ended, so that the run does not fail
            mlflow_runs.client().set_tag(run_id, "pruned", "true")
        else:
            mlflow_runs.log_metrics(run_id, {"best_val_score": score * job.score_unit}, step=last_step)
        finally:
            mlflow_runs.log_metric_steps(run_id, scores)
    if pruned is not None:
        raise pruned
    return score


def _train_trial(
    job: SearchJob,
    model: Model,
    training: Training,
    splits: fit.TrainingSplits,
    on_epoch: Callable[[EpochResult], None],
) -> tuple[float, int]:
    """The validation score of a network, in standard units, and the number of its epochs or rounds."""
    from bloomery.models.training.loop import TrainingHooks, best_epoch
    from bloomery.tasks.train import ensemble_training, tree_training

    if isinstance(model, BoostedTrees):
        trees = tree_training.fit_trees(job.dataset, model, training, splits)
        return tree_training.evaluate_trees(trees, job.dataset, training, splits), trees.num_rounds
    if isinstance(model, TabularEnsemble):
        network = model.network
        ensemble = ensemble_training.fit_ensemble(
            job.dataset,
            model,
            training,
            splits,
            lambda: fit.fit_network(splits, fit.make_blueprint(job.dataset, network), training),
        )
        return ensemble_training.evaluate_ensemble(ensemble, job.dataset, training, splits), ensemble.trees.num_rounds
    blueprint, hooks = fit.make_blueprint(job.dataset, model), TrainingHooks(on_epoch=on_epoch)
    result = fit.fit_network(splits, blueprint, training, job.initial_weights, hooks=hooks)
    best = best_epoch(result.history, training, is_error=job.score.is_error)
    return best.val_score, best.number


def _suggest_parameters(trial: Trial, job: SearchJob) -> dict[str, Any]:
    networks = _candidate_networks(job)
    position = trial.suggest_categorical("network", range(len(networks))) if len(networks) > 1 else 0
    network = networks[position]
    for path, choices in spaces.search_space(network, _search_options(job.training).space).items():
        name = _parameter_name(network, path)
        if not isinstance(choices, Range):
            trial.suggest_categorical(name, [spaces.encode_choice(choice) for choice in choices])
        elif isinstance(choices.low, int) and isinstance(choices.high, int):
            trial.suggest_int(name, choices.low, choices.high, log=choices.log)
        else:
            trial.suggest_float(name, choices.low, choices.high, log=choices.log)
    return trial.params


def _apply_parameters(job: SearchJob, params: dict[str, Any]) -> tuple[Model, Training]:
    """Network and training with the values of a trial, without a search."""
    network = _candidate_networks(job)[params.get("network", 0)]
    values = {
        name.rpartition(": ")[2]: json.loads(value) if isinstance(value, str) else value
        for name, value in params.items()
        if name != "network"
    }
    return spaces.apply_values(network, job.training.model_copy(update={"search": None}), values)
