"""A search for smaller networks beside those that are named: what leaves, how much of it, by which measure."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bloomery.data_contracts.errors import TrainingDiverged
from bloomery.models.compression.config import PRUNABLE, CandidateSearch, CandidateSpec, Pruning
from bloomery.models.compression.pareto_front import pareto_front
from bloomery.tasks.compress.candidate_builder import CandidateBuilder, build_candidate, delete_float_files
from bloomery.tasks.compress.candidate_measurement import BuiltCandidate
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.tracking import mlflow_runs

if TYPE_CHECKING:
    from optuna import Trial

    from bloomery.models.training.loop import EpochResult

_LEAST_ROWS = 4096  # of the validation part, on which each trial is judged
_DRAWN_BLINDLY = 4  # trials before what they came to has a say
_FAR = 3.0  # times the worst drop that is kept: who is further behind after half of the lessons is given up


class ScoredCandidate(NamedTuple):
    """A candidate, and what it came to on the validation part."""

    made: BuiltCandidate
    worse: float  # than as trained: the drop of accuracy, or the rise of RMSE as a share
    size_bytes: int
    macs: int


class EarlyStopped(Exception):
    """A network that will not come near enough to the one as trained."""


def search_candidates(
    builder: CandidateBuilder,
    named: tuple[CandidateSpec, ...],
    wanted: CandidateSearch,
    usual: tuple[CandidateSpec, ...],
) -> list[BuiltCandidate]:
    """The named candidates, and those of the search that none is better than in score, size and multiplications.

    Each trial is one smaller network, which is made in 8 bits too, as the named candidates or else the `usual` ones
    are. What is made alike is made once. Optuna's TPE draws them, from figures alone that do not depend on the machine,
    so the same recipe tries the same. A table of all that was tried is kept with the training run.

    Source: Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization"; Ozaki et al. 2022, "Multiobjective
    Tree-Structured Parzen Estimator".
    """
    made = [build_candidate(builder, spec) for spec in named]
    fp32 = _score(builder, next(one for one in made if one.spec.is_baseline))
    tried = [_judged(builder, one, fp32) for one in made]
    in_8_bits = next(found for spec in (*named, *usual) if (found := _in_8_bits(spec)))
    _try_all(builder, tried, fp32, wanted, in_8_bits)
    kept = _kept(tried, len(named), wanted)
    _log(builder, tried, kept)
    for one in tried:
        if one not in kept:
            one.made.path.unlink()
    delete_float_files(builder)
    return [one.made for one in kept]


def _try_all(
    builder: CandidateBuilder,
    tried: list[ScoredCandidate],
    fp32: float,
    wanted: CandidateSearch,
    in_8_bits: Mapping[str, Any],
) -> None:
    """Afterwards `tried` has grown by what the trials came to."""
    import optuna

    from bloomery.models.networks.blueprint import read_blueprint

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, multivariate=True, n_startup_trials=_DRAWN_BLINDLY)
    study = optuna.create_study(directions=["minimize"] * 3, sampler=sampler)
    kind = read_blueprint(settings().path(builder.trained.network_uri)).config.kind
    end = None if wanted.timeout_minutes is None else time.monotonic() + 60 * wanted.timeout_minutes

    def hopeless(val_score: float) -> bool:
        return _worse(builder, val_score, fp32) > _FAR * wanted.max_drop

    for number in range(wanted.trials):
        if end is not None and time.monotonic() > end:
            break
        emit(Progress("compress", number, wanted.trials, "search"))
        trial = study.ask()
        spec = _drawn(trial, kind)
        known = spec is None or any(spec.before_quantization == one.made.spec.before_quantization for one in tried)
        try:
            both = [] if spec is None or known else _both(builder, spec, in_8_bits, hopeless)
        except (EarlyStopped, TrainingDiverged):
            both = []
        judged = [_judged(builder, one, fp32) for one in both]
        tried += judged
        if judged:
            least = [min(figures) for figures in zip(*(one[1:] for one in judged), strict=True)]
            study.tell(trial, [float(figure) for figure in least])
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)  # nothing to learn from


def _in_8_bits(spec: CandidateSpec) -> dict[str, Any]:
    """What a candidate says of 8 bits, if it has them."""
    if spec.quantize is None and spec.weight_only != "int8":
        return {}
    return spec.model_dump(include={"quantize", "calibration_method", "reduce_range", "amx", "weight_only"})


def _drawn(trial: Trial, kind: str) -> CandidateSpec | None:
    """What a trial makes of a network of this kind, in float; None where that is nothing."""
    pruned = thin = None
    words = []
    if kind in PRUNABLE:
        share = trial.suggest_int("prune", 0, 85, step=5)
        importance = trial.suggest_categorical("importance", ["magnitude", "taylor"])
        parts = ["units"]
        if kind in ("transformer", "gpt"):
            parts = trial.suggest_categorical("parts", ["units", "units heads", "units heads layers"]).split()
        if share:
            pruned = Pruning(ratio=share / 100, importance=importance, structures=tuple(parts))  # type: ignore[arg-type]
            words += [f"p{share}", importance[0], *(part[0] for part in parts[1:])]
    factorised = trial.suggest_int("factorise", 0, 80, step=20)
    if factorised:
        thin = factorised / 100
        words.append(f"f{factorised}")
    if not words:
        return None
    return CandidateSpec(name="-".join(words), prune=pruned, factorize=thin)


def _both(
    builder: CandidateBuilder, spec: CandidateSpec, in_8_bits: Mapping[str, Any], hopeless: Callable[[float], bool]
) -> list[BuiltCandidate]:
    """The network in float and in 8 bits.

    Raises:
        Hopeless: half of its lessons over, it is still far behind.
    """
    half = builder.compression.fine_tune.epochs / 2

    def on_epoch(epoch: EpochResult) -> None:
        if epoch.number >= half and hopeless(epoch.val_score):
            raise EarlyStopped

    quantized = spec.model_copy(update={"name": f"{spec.name}-int8", **in_8_bits})
    return [build_candidate(builder, spec, on_epoch), build_candidate(builder, quantized)]


def _score(builder: CandidateBuilder, made: BuiltCandidate) -> float:
    """Accuracy, or RMSE in standard units, of the ONNX file on rows of the validation part."""
    from bloomery.models.inference.outputs import compute_outputs
    from bloomery.models.inference.runtime import create_session
    from bloomery.models.training.data.batches import even_sample
    from bloomery.models.training.optimization.loss import score_outputs

    x, y = (even_sample(part, _LEAST_ROWS) for part in (builder.parts.val.x, builder.parts.val.y))
    return score_outputs(compute_outputs(create_session(made.path), x.numpy(), is_row_by_row=made.is_row_by_row), y)


def _worse(builder: CandidateBuilder, score: float, fp32: float) -> float:
    """The drop of accuracy, or the rise of RMSE as a share."""
    return fp32 - score if builder.trained.dataset.task == "classification" else score / fp32 - 1


def _judged(builder: CandidateBuilder, made: BuiltCandidate, fp32: float) -> ScoredCandidate:
    return ScoredCandidate(made, _worse(builder, _score(builder, made), fp32), made.path.stat().st_size, made.num_macs)


def _kept(tried: Sequence[ScoredCandidate], named: int, wanted: CandidateSearch) -> list[ScoredCandidate]:
    """The first `named`, and of the others those that none is better than, evenly over their sizes if they are many."""
    costs = [one[1:] for one in tried]
    unbeaten = [
        place for place in pareto_front(costs) if costs[place] not in costs[:place]
    ]  # of equal ones the first counts
    found = [tried[place] for place in unbeaten if place >= named and tried[place].worse <= wanted.max_drop]
    found.sort(key=lambda one: one.size_bytes)
    if len(found) > wanted.keep:
        places = np.unique(np.linspace(0, len(found) - 1, wanted.keep).round().astype(int))
        found = [found[place] for place in places]
    return [*tried[:named], *found]


def _log(builder: CandidateBuilder, tried: Sequence[ScoredCandidate], kept: Sequence[ScoredCandidate]) -> None:
    columns = {
        "candidate": [one.made.spec.name for one in tried],
        "worse_on_validation": [one.worse for one in tried],
        "size_bytes": [one.size_bytes for one in tried],
        "num_macs": [one.macs for one in tried],
        "is_kept": [one in kept for one in tried],
    }
    mlflow_runs.client().log_table(builder.trained.run_id, columns, f"explored-{builder.out.key[:12]}.json")
