"""What is known of a version's limits: from its figures, its contract and its records, each a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import Choice, Interval
from bloomery.data_contracts.records.score_format import (
    DEGRADATION_NAMES,
    SCORE_NAMES,
    format_degradation,
    format_score,
    format_score_value,
)
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.tasks.model_card.metrics import CardMetrics

_FEW_ROWS = 1_000  # on fewer an accuracy of 90% is known to two points at best
_FEW_OF_ONE = 30  # rows of a class or slice, on fewer of which a share says little
_MOST_NAMED = 12
_LARGE_CALIBRATION_ERROR = 0.05
_LIMITS = ("between", "in_set", "length", "num_items", "pattern")  # kinds of rules that say what a value may be


def list_limitations(chosen: Choice, figures: CardMetrics) -> list[str]:
    """The words of the contract first, then what the figures show."""
    trained = chosen.candidates.trained
    contract = trained.dataset.valid_rows.contract
    return [
        *(str(contract.description[name]) for name in ("limitations", "usage") if contract.description.get(name)),
        *_of_figures(trained.dataset.task, figures),
        *_of_calibration(figures),
        *_of_data(chosen, contract),
        *_of_network(chosen),
    ]


def _of_figures(task: Task, figures: CardMetrics) -> Iterator[str]:
    score = SCORE_NAMES[task]
    if figures.num_rows < _FEW_ROWS:
        yield (
            f"Only {figures.num_rows:,} rows were held out, so {score} is known no better than "
            f"{_between(task, figures.score)}."
        )
    few = [f"{one.name} ({one.num_rows})" for one in figures.classes if one.num_rows < _FEW_OF_ONE]
    few += [f"{one.column} = {one.value} ({one.num_rows})" for one in figures.slices if one.num_rows < _FEW_OF_ONE]
    if few:
        yield f"Fewer than {_FEW_OF_ONE} held-out rows, so that little is known of them: {_named(few)}."
    poor = [
        f"{one.name} ({format_score('classification', one.recall)})"
        for one in figures.classes
        if one.recall is not None and one.recall.high < figures.score.value
    ]
    if poor:
        score = format_score_value(task, figures.score.value)
        yield f"Surely found less often than {score} of the time: {_named(poor)}."
    worse = [
        f"{one.column} = {one.value} ({format_score(task, one.score)})"
        for one in figures.slices
        if _is_surely_worse(task, one.score, figures.score.value)
    ]
    if worse:
        over_all = format_score_value(task, figures.score.value)
        yield f"Surely worse than {score} {over_all}, that of all rows: {_named(worse)}."


def _is_surely_worse(task: Task, score: Interval, of_all: float) -> bool:
    return score.high < of_all if task == "classification" else score.low > of_all


def _of_calibration(figures: CardMetrics) -> Iterator[str]:
    if figures.calibration_error is None:
        yield "An answer is a figure alone: nothing says how sure it is."
        return
    error = figures.calibration_error
    how = "so do not take its probabilities at their word" if error > _LARGE_CALIBRATION_ERROR else "on average"
    yield f"The probability of an answer and how often it is right lie {error * 100:.1f} points apart, {how}."


def _of_data(chosen: Choice, contract: Contract) -> Iterator[str]:
    trained = chosen.candidates.trained
    dataset = trained.dataset
    read = set(dataset.inputs)
    people = sorted(name for name in contract.personal_columns)
    if people:
        told = [f"{name} ({_become(contract, name)})" for name in people]
        yield f"Columns about a person: {_named(told)}."
    rules = [rule for rule in contract.rules() if rule.column in read and rule.kind in _LIMITS]
    errors = [f"{rule.target} {rule.sentence}" for rule in rules if rule.severity == "error"]
    if errors:
        yield f"What the contract excludes was never seen and is refused: {_named(_short(errors))}."
    if dataset.valid_rows.num_quarantined:
        broken = [f"{words} ({count:,})" for words, count in dataset.valid_rows.violations if count]
        yield (
            f"{dataset.valid_rows.num_quarantined:,} rows broke the contract and taught nothing"
            f"{f': {_named(_short(broken))}' if broken else ''}."
        )
    if dataset.num_dropped:
        yield f"{dataset.num_dropped:,} rows had no whole window or no label, and were left out."
    fresh = dataset.valid_rows.fresh_until
    if fresh is not None:
        yield f"By the contract its data is fresh until {fresh:%Y-%m-%d %H:%M} UTC."


def _become(contract: Contract, name: str) -> str:
    column = contract.column(name)
    kept = {"drop": "dropped", "hash": "hashed", "encrypt": "encrypted"}
    return "" if column is None or column.personal is None else f"{kept[column.personal]} before anything was learnt"


def _of_network(chosen: Choice) -> Iterator[str]:
    candidate, options = chosen.candidate, chosen.candidates
    trained = options.trained
    task = trained.dataset.task
    if candidate.name != options.baseline:
        worse = candidate.degradation
        flips = candidate.flips
        told = (
            ""
            if flips is None
            else f"; {flips.num_lost:,} answers went wrong by it and {flips.num_gained:,} became right"
        )
        yield (
            f"Compressed as {candidate.name}: against the network as trained a {DEGRADATION_NAMES[task]} of "
            f"{SCORE_NAMES[task]} of "
            f"{format_degradation(task, worse.value)} ({format_degradation(task, worse.low)} to "
            f"{format_degradation(task, worse.high)}, 95%){told}."
        )
    yield (
        "Times were measured on one thread of the processor named under Training; on another, and beside other work, "
        "they differ."
    )
    if trained.initial_weights is not None:
        yield f"Training began with the weights of {trained.initial_weights.name}, whose limits it inherits."
    if trained.import_error is not None:
        yield f"The network came trained; here it answers within {trained.import_error:.2g} of the file as it came."
    if trained.privacy is None:
        yield "Nothing is promised of single training rows: what was learnt may tell of them."
    else:
        yield f"Each training row is {trained.privacy}."


def _short(texts: Sequence[str]) -> list[str]:
    return [text if len(text) <= 120 else f"{text[:117]}…" for text in texts]


def _named(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return "; ".join(names[:_MOST_NAMED]) + (f"; and {more:,} more" if more > 0 else "")


def _between(task: Task, score: Interval) -> str:
    return f"{format_score_value(task, score.low)} to {format_score_value(task, score.high)} (95%)"
