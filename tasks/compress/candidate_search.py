"""Searches for smaller networks in addition to the named candidates: what to prune or factorize, and how much."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bloomery.data_contracts.errors import TrainingDiverged
from bloomery.models.compression.config import CandidateSearch, CandidateSpec, Pruning
from bloomery.models.compression.obstacles import find_factorization_obstacle, find_pruning_obstacle
from bloomery.models.compression.pareto_front import pareto_front
from bloomery.models.networks.config import Model
from bloomery.tasks.compress.built_candidate import BuiltCandidate
from bloomery.tasks.compress.candidate_builder import CandidateBuilder, build_candidate, delete_float_files
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from optuna import Trial

    from bloomery.models.training.loop import EpochResult

_NUM_SCORING_ROWS = 4096  # validation rows that score each trial
_NUM_RANDOM_TRIALS = 4  # before earlier trials guide the sampler
_STRUCTURES = ("units", "units heads", "units heads layers")
_EARLY_STOPPING_FACTOR = 3.0  # times `max_drop`; a trial beyond it stops after half of its epochs


class ScoredCandidate(NamedTuple):
    """A candidate, its costs, and its degradation on the validation split."""

    built: BuiltCandidate
    degradation: float  # against the trained network: the drop of the score, or the relative rise of an error
    size_bytes: int
    macs: int


class EarlyStopped(Exception):
    """A trial stays too far behind the trained network."""


def search_candidates(
    builder: CandidateBuilder,
    named_specs: tuple[CandidateSpec, ...],
    options: CandidateSearch,
    defaults: tuple[CandidateSpec, ...],
) -> list[BuiltCandidate]:
    """Builds the named candidates, and those of a search on the Pareto front of degradation, size and MACs.

    Each trial is one smaller network, in float and in 8 bits, quantized like the named candidates or else like the
    `defaults`. Optuna's TPE samples trials from numbers that do not depend on the machine, so equal recipes run equal
    trials. A table of all trials is logged to the training run.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"; Ozaki et al. 2022, "Multiobjective
    Tree-Structured Parzen Estimator".
    """
    built = [build_candidate(builder, spec) for spec in named_specs]
    baseline_score = _score(builder, next(candidate for candidate in built if candidate.spec.is_baseline))
    scored = [_score_candidate(builder, candidate, baseline_score) for candidate in built]
    quantization = next(fields for spec in (*named_specs, *defaults) if (fields := _quantization_fields(spec)))
    _run_trials(builder, scored, baseline_score, options, quantization)
    selection = _select_candidates(scored, len(named_specs), options)
    _log_trials(builder, scored, selection)
    for candidate in scored:
        if candidate not in selection:
            candidate.built.path.unlink()
    delete_float_files(builder)
    return [candidate.built for candidate in selection]


def _run_trials(
    builder: CandidateBuilder,
    scored: list[ScoredCandidate],
    baseline_score: float,
    options: CandidateSearch,
    quantization: Mapping[str, Any],
) -> None:
    """Runs the trials and appends their candidates to `scored`."""
    import optuna

    from bloomery.models.networks.blueprint import read_blueprint

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=_NUM_RANDOM_TRIALS)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    model = read_blueprint(settings().path(builder.trained.network_uri)).config
    deadline = None if options.timeout_minutes is None else time.monotonic() + 60 * options.timeout_minutes

    def is_too_far(val_score: float) -> bool:
        return _degradation(builder, val_score, baseline_score) > _EARLY_STOPPING_FACTOR * options.max_drop

    for number in range(options.trials):
        if deadline is not None and time.monotonic() > deadline:
            break
        emit(Progress("compress", number, options.trials, "search"))
        trial = study.ask()
        spec = suggest_spec(trial, model)
        is_new = spec is not None and all(
            spec.before_quantization != previous.built.spec.before_quantization for previous in scored
        )
        try:
            built = _build_trial(builder, spec, quantization, is_too_far) if spec is not None and is_new else []
        except (EarlyStopped, TrainingDiverged):
            built = []
        results = [_score_candidate(builder, candidate, baseline_score) for candidate in built]
        scored += results
        if results:
            best = [min(costs) for costs in zip(*(result[1:] for result in results), strict=True)]
            study.tell(trial, [float(cost) for cost in best])
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # gives the sampler nothing to learn from


def _quantization_fields(spec: CandidateSpec) -> dict[str, Any]:
    """The fields that quantize a candidate to 8 bits; empty if it is not."""
    if spec.quantize is None and spec.weight_only != "int8":
        return {}
    return spec.model_dump(include={"quantize", "calibration_method", "reduce_range", "amx", "weight_only"})


def suggest_spec(trial: Trial, model: Model) -> CandidateSpec | None:
    """The candidate in float that a trial suggests for a network of this config; None if it changes nothing."""
    pruning = factorized_share = None
    name_parts = []
    choices = [choice for choice in _STRUCTURES if find_pruning_obstacle(model, _prune_half(choice)) is None]
    if choices:
        percent = trial.suggest_int("prune", 0, 85, step=5)
        importance = trial.suggest_categorical("importance", ["magnitude", "taylor"])
        structures = (trial.suggest_categorical("parts", choices) if len(choices) > 1 else choices[0]).split()
        if percent:
            pruning = Pruning(ratio=percent / 100, importance=importance, structures=tuple(structures))  # type: ignore[arg-type]
            name_parts += [f"p{percent}", importance[0], *(structure[0] for structure in structures[1:])]
    has_matrices = find_factorization_obstacle(model) is None
    factorized_percent = trial.suggest_int("factorise", 0, 80, step=20) if has_matrices else 0
    if factorized_percent:
        factorized_share = factorized_percent / 100
        name_parts.append(f"f{factorized_percent}")
    if not name_parts:
        return None
    return CandidateSpec(name="-".join(name_parts), prune=pruning, factorize=factorized_share)


def _prune_half(structures: str) -> Pruning:
    return Pruning(ratio=0.5, structures=tuple(structures.split()))  # type: ignore[arg-type]


def _build_trial(
    builder: CandidateBuilder,
    spec: CandidateSpec,
    quantization: Mapping[str, Any],
    is_too_far: Callable[[float], bool],
) -> list[BuiltCandidate]:
    """The network of a trial in float and in 8 bits.

    Raises:
        EarlyStopped: it is too far behind after half of its epochs.
    """
    half = builder.compression.fine_tune.epochs / 2

    def on_epoch(epoch: EpochResult) -> None:
        if epoch.number >= half and is_too_far(epoch.val_score):
            raise EarlyStopped

    quantized = spec.model_copy(update={"name": f"{spec.name}-int8", **quantization})
    return [build_candidate(builder, spec, on_epoch), build_candidate(builder, quantized)]


def _score(builder: CandidateBuilder, built: BuiltCandidate) -> float:
    """The score of the ONNX file on validation rows: accuracy, RMSE in standard units, or that of the recipe."""
    import torch

    from bloomery.models.inference.outputs import compute_outputs
    from bloomery.models.training.data.batches import even_sample
    from bloomery.models.training.optimization.loss import score_outputs

    val = builder.splits.val
    x, y = (even_sample(tensor, _NUM_SCORING_ROWS) for tensor in (val.x, val.y))
    outputs = compute_outputs(built.open_session(), x.numpy(), is_row_by_row=built.is_row_by_row)
    measure = builder.measure
    return score_outputs(outputs, y) if measure is None else measure(torch.from_numpy(outputs), y)


def _degradation(builder: CandidateBuilder, score: float, baseline_score: float) -> float:
    """The drop of the score, or the relative rise of an error."""
    return score / baseline_score - 1 if builder.trained.score.is_error else baseline_score - score


def _score_candidate(builder: CandidateBuilder, built: BuiltCandidate, baseline_score: float) -> ScoredCandidate:
    degradation = _degradation(builder, _score(builder, built), baseline_score)
    return ScoredCandidate(built, degradation, built.path.stat().st_size, built.num_macs)


def _select_candidates(
    scored: Sequence[ScoredCandidate], num_named: int, options: CandidateSearch
) -> list[ScoredCandidate]:
    """The named candidates, and the others on the Pareto front, evenly spaced by size if there are too many."""
    costs = [candidate[1:] for candidate in scored]
    # Of candidates with equal costs the first counts.
    front = [position for position in pareto_front(costs) if costs[position] not in costs[:position]]
    additions = [scored[position] for position in front if position >= num_named]
    additions = [candidate for candidate in additions if candidate.degradation <= options.max_drop]
    additions.sort(key=lambda candidate: candidate.size_bytes)
    if len(additions) > options.keep:
        positions = np.unique(np.linspace(0, len(additions) - 1, options.keep).round().astype(int))
        additions = [additions[position] for position in positions]
    return [*scored[:num_named], *additions]


def _log_trials(
    builder: CandidateBuilder, scored: Sequence[ScoredCandidate], selection: Sequence[ScoredCandidate]
) -> None:
    columns = {
        "candidate": [candidate.built.spec.name for candidate in scored],
        "validation_degradation": [candidate.degradation for candidate in scored],
        "size_bytes": [candidate.size_bytes for candidate in scored],
        "num_macs": [candidate.macs for candidate in scored],
        "is_kept": [candidate in selection for candidate in scored],
    }
    mlflow_runs.client().log_table(builder.trained.run_id, columns, f"candidate-search-{builder.out.key[:12]}.json")
