"""Derives the limitations of a version from its metrics, its contract and its records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.records.records import Choice, Interval, PredictionInterval
from bloomery.data_contracts.records.score_format import (
    SCORE_NAMES,
    degradation_name,
    format_degradation,
    format_score,
    format_score_value,
)
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Task, predicts_numbers
from bloomery.tasks.model_card.metrics import CardMetrics

_FEW_ROWS = 1_000  # with fewer rows an accuracy of 90% is known to two points at best
_FEW_SUBGROUP_ROWS = 30  # with fewer rows the score of a class or slice says little
_MAX_LISTED = 12
_MAX_LENGTH = 120  # characters of one listed text
_LARGE_CALIBRATION_ERROR = 0.05
_VALUE_RULES = ("between", "in_set", "length", "num_items", "pattern")  # rules that restrict a value
_PRIVACY_ACTIONS = {"drop": "dropped", "hash": "hashed", "encrypt": "encrypted"}


def list_limitations(choice: Choice, metrics: CardMetrics) -> list[str]:
    """One sentence per limitation: first those that the contract states, then those that follow from the metrics."""
    trained = choice.candidates.trained
    contract = trained.dataset.valid_rows.contract
    return [
        *(str(contract.description[name]) for name in ("limitations", "usage") if contract.description.get(name)),
        *_metric_limitations(trained.score, metrics),
        *_calibration_limitations(trained.dataset.task, metrics, choice.candidate.interval),
        *_data_limitations(choice, contract),
        *_network_limitations(choice),
    ]


def _metric_limitations(score: Score, metrics: CardMetrics) -> Iterator[str]:
    task, name = score.facts.task, score.title
    if metrics.num_rows < _FEW_ROWS:
        low, high = (format_score_value(score, limit) for limit in (metrics.score.low, metrics.score.high))
        yield (f"The test split has only {metrics.num_rows:,} rows: the 95% interval of {name} is {low} to {high}.")
    small = [f"{row.name} ({row.num_rows})" for row in metrics.classes if row.num_rows < _FEW_SUBGROUP_ROWS]
    small += [
        f"{row.column} = {row.value} ({row.num_rows})" for row in metrics.slices if row.num_rows < _FEW_SUBGROUP_ROWS
    ]
    if small:
        yield (
            f"Metrics are uncertain for classes and slices with fewer than {_FEW_SUBGROUP_ROWS} test rows: "
            f"{_join(small)}."
        )
    # Classes and slices are measured by accuracy or RMSE, whatever the recipe's score is.
    name = SCORE_NAMES[task]
    typical = metrics.further.get(name, metrics.score.value)
    overall = format_score_value(task, typical)
    typical_recall = 0.5 if task in ("multilabel", "tagging") else typical
    low_recall = [
        f"{row.name} ({format_score('classification', row.recall)})"
        for row in metrics.classes
        if row.recall is not None and row.recall.high < typical_recall
    ]
    if low_recall and task == "multilabel":
        yield f"Of the rows with these labels, fewer than half are found: {_join(low_recall)}."
    elif low_recall and task == "tagging":
        yield f"Fewer than half of these entities, or words with these tags, are found: {_join(low_recall)}."
    elif low_recall:
        yield f"Recall is significantly below the overall {name} of {overall} for these classes: {_join(low_recall)}."
    worse = [
        f"{row.column} = {row.value} ({format_score(task, row.score)})"
        for row in metrics.slices
        if _is_significantly_worse(task, row.score, typical)
    ]
    if worse:
        yield f"The {name} is significantly worse than the overall {overall} in these slices: {_join(worse)}."


def _is_significantly_worse(task: Task, score: Interval, overall: float) -> bool:
    """Whether the whole 95% interval of `score` lies on the worse side of `overall`."""
    return score.low > overall if predicts_numbers(task) else score.high < overall


def _calibration_limitations(task: Task, metrics: CardMetrics, interval: PredictionInterval | None) -> Iterator[str]:
    if task == "tagging":
        yield "The probability of a tag is not calibrated, and that of an entity is not computed."
        return
    if task == "embedding":
        yield "Vectors of texts unlike those of the training rows may be close to each other without a reason."
        return
    if metrics.calibration_error is None and interval is None and task == "multioutput":
        yield "Predictions are numbers without an estimate of their uncertainty."
        return
    if metrics.calibration_error is None and interval is None:
        yield "A prediction is a single number without an estimate of its uncertainty."
        return
    if metrics.calibration_error is None:
        yield "The interval around a prediction is equally wide for rows that are easy and hard to predict."
        return
    if metrics.bins is not None and not metrics.bins.counts.any():
        yield "No label is predicted for any row of the test split, so that the calibration is unknown."
        return
    error = metrics.calibration_error
    advice = ": recalibrate them before relying on them" if error > _LARGE_CALIBRATION_ERROR else " on average"
    yield f"Predicted probabilities deviate from the observed accuracy by {error * 100:.1f} points{advice}."


def _data_limitations(choice: Choice, contract: Contract) -> Iterator[str]:
    dataset = choice.candidates.trained.dataset
    inputs = set(dataset.inputs)
    personal = [f"{name} ({_privacy_action(contract, name)})" for name in sorted(contract.personal_columns)]
    if personal:
        yield f"Columns with personal data: {_join(personal)}."
    rules = [rule for rule in contract.rules() if rule.column in inputs and rule.kind in _VALUE_RULES]
    errors = [f"{rule.target} {rule.sentence}" for rule in rules if rule.severity == "error"]
    if errors:
        yield f"Values outside the contract were not seen in training and are rejected: {_join(_shorten(errors))}."
    if dataset.valid_rows.num_quarantined:
        violations = [f"{rule} ({count:,})" for rule, count in dataset.valid_rows.violations if count]
        rules_text = f": {_join(_shorten(violations))}" if violations else ""
        yield f"{dataset.valid_rows.num_quarantined:,} rows violated the contract and were not used{rules_text}."
    if dataset.num_dropped:
        yield f"{dataset.num_dropped:,} rows without a complete window or without a label were dropped."
    fresh_until = dataset.valid_rows.fresh_until
    if fresh_until is not None:
        yield f"The contract considers the data fresh until {fresh_until:%Y-%m-%d %H:%M} UTC."


def _privacy_action(contract: Contract, name: str) -> str:
    column = contract.column(name)
    if column is None or column.personal is None:
        return ""
    return f"{_PRIVACY_ACTIONS[column.personal]} before training"


def _network_limitations(choice: Choice) -> Iterator[str]:
    candidate, candidates = choice.candidate, choice.candidates
    trained = candidates.trained
    score = trained.score
    if candidate.name != candidates.baseline:
        worse, flips = candidate.degradation, candidate.flips
        changes = (
            ""
            if flips is None
            else f"; {flips.num_lost:,} predictions became wrong and {flips.num_gained:,} became right"
        )
        yield (
            f"Compression as {candidate.name} costs a {degradation_name(score)} of {score.title} of "
            f"{format_degradation(score, worse.value)} against the trained network (95% interval "
            f"{format_degradation(score, worse.low)} to {format_degradation(score, worse.high)}){changes}."
        )
    yield (
        "Latency was measured on one thread of the processor named under Training procedure; it differs on other "
        "processors and under load."
    )
    if trained.initial_weights is not None:
        yield f"Training started from the weights of {trained.initial_weights.name} and inherits their limitations."
    for checkpoint in trained.checkpoints:
        yield f"The network inherits the limitations of {checkpoint.name}, whose licence applies to it too."
    if trained.import_error is not None:
        error = trained.import_error
        yield f"The network was imported; its outputs differ from those of the original by at most {error:.2g}."
    if trained.trees_error is not None:
        yield (
            "The outputs of the ONNX file differ from those of scikit-learn's trees by at most "
            f"{trained.trees_error:.2g} on all rows. Trees repeat the values of their leaves: they do not extrapolate "
            "beyond the training rows."
        )
    if trained.privacy is None:
        yield "Training was not differentially private: the model may reveal single training rows."
    else:
        yield f"Each training row is {trained.privacy}."


def _shorten(texts: Sequence[str]) -> list[str]:
    return [text if len(text) <= _MAX_LENGTH else f"{text[: _MAX_LENGTH - 3]}…" for text in texts]


def _join(names: Sequence[str]) -> str:
    num_more = len(names) - _MAX_LISTED
    return "; ".join(names[:_MAX_LISTED]) + (f"; and {num_more:,} more" if num_more > 0 else "")
