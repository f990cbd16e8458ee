"""The search for a better network: trials by Optuna, each a run of its own in MLflow."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bloomery.data_contracts.errors import BloomeryError, EngineMissing, TrainingDiverged
from bloomery.data_contracts.records.records import Dataset, InitialWeights
from bloomery.models.networks.config import Model
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
    """What a trial needs to know."""

    key: str  # of the stage
    run_id: str  # of the stage's run, under which the trials' lie
    dataset: Dataset
    model: Model
    training: Training
    start: InitialWeights | None
    unit: float = 1.0  # of a score, in the units of the label


class SearchResult(NamedTuple):
    """The best trial's network and training, its score on the validation part, and how many trials ended with one."""

    model: Model
    training: Training
    score: float
    num_trials: int
    first_score: float  # of the recipe as it stands, or of the first network of `auto`


def run_search(job: SearchJob) -> SearchResult:
    """Try what the recipe's space allows and say what was best.

    The first trial is the recipe as it stands. Trials are kept in the state folder: a killed search goes on with those
    that it lacks, and the one that was cut short is tried again. With one trial at a time equal arguments try the same.

    Raises:
        TrainingDiverged: no trial has come to a score.
        RecipeInvalid: a network cannot be built as the space says.
        EngineMissing: the processes that were to try have died.
    """
    wanted = _search_of(job.training)
    study = _study(job)
    _put_back_the_dead(study)
    mlflow_runs.adopt_runs(job.dataset.valid_rows.contract.name, job.key, job.run_id, tag="trial")
    if not study.trials:
        for first in _first_trials(job):
            study.enqueue_trial(first)
    if wanted.parallel == 1:
        _work(job)
    else:
        _work_apart(job, study, wanted)
    done = _finished(study)
    if not done:
        raise TrainingDiverged(
            f"none of {len(study.trials)} trials came to a score",
            required="a finite loss in one of them at least",
            where="the recipe's training.search",
            remedy="lower `training.learning_rate` in the space and in the recipe, and look at the data's ranges",
        )
    model, training = _recipe_of(job, study.best_trial.params)
    return SearchResult(model, training, study.best_value * job.unit, len(done), done[0].value * job.unit)


def _work_apart(job: SearchJob, study: Study, wanted: Search) -> None:
    """Trials in several processes. What one of them cannot do ends all; of those that die the others take the work."""
    context = multiprocessing.get_context("spawn")
    failures = context.SimpleQueue()
    workers = [
        context.Process(target=_work_as_child, args=(job, number, failures)) for number in range(wanted.parallel)
    ]
    try:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            next(worker for worker in workers if worker.is_alive()).join(timeout=2)
            if not failures.empty():
                raise failures.get()
            _tell(study, wanted)
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
            f"the processes of the search ended with {', '.join(map(str, codes))}",
            required="one that runs to the end",
            where="the recipe's training.search",
            remedy="run again: the trials that have ended are kept; a code of -9 means too little memory, "
            "so lower `parallel`",
        )


def _work_as_child(job: SearchJob, number: int, failures: SimpleQueue[BloomeryError]) -> None:
    threading.Thread(target=_end_with_starter, daemon=True).start()
    try:
        _work(job, number)
    except BloomeryError as failure:
        failures.put(failure)
        raise SystemExit(1) from None


def _end_with_starter() -> None:
    """A killed search must not go on unseen beside the one that is started in its place."""
    starter = multiprocessing.parent_process()
    if starter is not None:
        starter.join()
        os._exit(1)


def delete_search(key: str) -> None:
    """Remove what the search of a stage has kept, once the stage is whole."""
    shutil.rmtree(_folder(key), ignore_errors=True)


def _folder(key: str) -> Path:
    return settings().home / "searches" / key


def _search_of(training: Training) -> Search:
    return training.search or Search(space={})


def _study(job: SearchJob, worker: int = 0) -> Study:
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
        direction="maximize" if job.dataset.task == "classification" else "minimize",
        load_if_exists=True,
    )
    # The seed moves with the trials that are there, or a search that goes on would try the first ones again.
    study.sampler = optuna.samplers.TPESampler(
        seed=job.training.seed + len(study.trials) + 7919 * worker, constant_liar=True
    )
    study.pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    return study


def _put_back_the_dead(study: Study) -> None:
    """What a killed process has left half done is tried again."""
    from optuna.trial import TrialState

    for trial in study.get_trials(states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)


def _finished(study: Study) -> list[Any]:
    from optuna.trial import TrialState

    return study.get_trials(states=[TrialState.COMPLETE])


def _networks(job: SearchJob) -> tuple[Model, ...]:
    return spaces.default_networks(job.dataset.layout) if job.model.kind == "auto" else (job.model,)


def _first_trials(job: SearchJob) -> list[dict[str, Any]]:
    """The recipe as it stands; with `auto`, each sensible network as it stands."""
    networks = _networks(job)
    if len(networks) == 1:
        return [_as_stated(job, networks[0])]
    return [{"network": position, **_as_stated(job, network)} for position, network in enumerate(networks)]


def _as_stated(job: SearchJob, network: Model) -> dict[str, Any]:
    """The values that the recipe has at the paths of the space, as far as the space holds them."""
    document = {"model": network.model_dump(), "training": job.training.model_dump()}
    stated: dict[str, Any] = {}
    for path, choices in spaces.search_space(network, _search_of(job.training).space).items():
        value: Any = document
        for step in path.split("."):
            value = value[step]
        if isinstance(choices, Range):
            if value is not None and choices.low <= value <= choices.high:
                stated[_name(network, path)] = value
            continue
        same = [
            one for one in choices if spaces.apply_values(network, job.training, {path: one}) == (network, job.training)
        ]
        stated |= {_name(network, path): spaces.encode_choice(one) for one in same[:1]}
    return stated


def _name(network: Model, path: str) -> str:
    """Spaces of different networks do not mix: what suits one says nothing of another."""
    return f"{network.kind}: {path}" if path.startswith("model.") else path


def _work(job: SearchJob, worker: int = 0) -> None:
    """Trials until there are as many as wanted; several processes may do so at a time."""
    from optuna.study import MaxTrialsCallback
    from optuna.trial import TrialState

    study, wanted = _study(job, worker), _search_of(job.training)
    over = (TrialState.COMPLETE, TrialState.PRUNED)
    if len(study.get_trials(states=over)) >= wanted.trials:
        return
    parts = fit.read_splits(job.dataset)
    study.optimize(
        lambda trial: _try(trial, job, parts),
        n_trials=wanted.trials,
        catch=(TrainingDiverged,),
        callbacks=[MaxTrialsCallback(wanted.trials, states=over), lambda study, _: _tell(study, wanted)],
    )


def _tell(study: Study, wanted: Search) -> None:
    done = _finished(study)
    best = f"best {study.best_value:.4g}" if done else ""
    emit(Progress("train", min(len(study.trials), wanted.trials), wanted.trials, f"search, {best}"))


def _try(trial: Trial, job: SearchJob, parts: fit.TrainingSplits) -> float:
    """The trial's score on the validation part.

    Raises:
        TrialPruned: it is behind the others. Its run in MLflow is ended all the same.
    """
    import optuna

    from bloomery.models.training.loop import best_epoch

    model, training = _recipe_of(job, _suggested(trial, job))
    epochs = _search_of(job.training).epochs
    training = training if epochs is None else training.model_copy(update={"epochs": epochs})
    configure_processor(training)
    blueprint = fit.make_blueprint(job.dataset, model)

    scores: list[tuple[int, dict[str, float]]] = []

    def on_epoch(epoch: EpochResult) -> None:
        scores.append((epoch.number, {"val_score": epoch.val_score * job.unit, "val_loss": epoch.val_loss}))
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
            fitted = fit.fit_network(parts, blueprint, training, job.start, on_epoch=on_epoch)
        except optuna.TrialPruned as ended:
            pruned = ended  # raised below, where it does not make the run a failed one
            mlflow_runs.client().set_tag(run_id, "pruned", "true")
        else:
            best = best_epoch(fitted.history, training, is_error=job.dataset.task == "regression")
            score = best.val_score
            mlflow_runs.log_metrics(run_id, {"best_val_score": score * job.unit}, step=best.number)
        finally:
            mlflow_runs.log_metric_steps(run_id, scores)
    if pruned is not None:
        raise pruned
    return score


def _suggested(trial: Trial, job: SearchJob) -> dict[str, Any]:
    networks = _networks(job)
    at = trial.suggest_categorical("network", range(len(networks))) if len(networks) > 1 else 0
    network = networks[at]
    for path, choices in spaces.search_space(network, _search_of(job.training).space).items():
        name = _name(network, path)
        if not isinstance(choices, Range):
            trial.suggest_categorical(name, [spaces.encode_choice(one) for one in choices])
        elif isinstance(choices.low, int) and isinstance(choices.high, int):
            trial.suggest_int(name, choices.low, choices.high, log=choices.log)
        else:
            trial.suggest_float(name, choices.low, choices.high, log=choices.log)
    return trial.params


def _recipe_of(job: SearchJob, params: dict[str, Any]) -> tuple[Model, Training]:
    """Network and training with a trial's values in place, and no search."""
    network = _networks(job)[params.get("network", 0)]
    values = {
        name.rpartition(": ")[2]: json.loads(value) if isinstance(value, str) else value
        for name, value in params.items()
        if name != "network"
    }
    return spaces.apply_values(network, job.training.model_copy(update={"search": None}), values)
