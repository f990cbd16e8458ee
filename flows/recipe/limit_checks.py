"""Checks that the score belongs to a recipe's task, and the limits in its budget and gates to its task and score."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloomery.data_contracts.records.scores import Score, default_score, scores_of
from bloomery.data_contracts.records.tensor_layout import Task, describe_task, predicts_numbers, predicts_one_class
from bloomery.models.compression.budget import Budget
from bloomery.models.evaluation.gates import Gates

# The limits of the other tasks, and the equivalent limits.
_OF_OTHER_TASK: dict[Task, dict[str, str]] = {
    "classification": {"slice_rise": "slice_drop"},
    "regression": {"slice_drop": "slice_rise", "class_drop": "slice_rise", "min_accuracy": "max_error"},
    "multilabel": {"slice_rise": "slice_drop", "min_accuracy": "min_score"},
    "embedding": {
        "slice_rise": "accuracy_drop",
        "slice_drop": "accuracy_drop",
        "class_drop": "accuracy_drop",
        "min_accuracy": "min_score",
    },
    "ordinal": {"slice_rise": "slice_drop"},
    "multitask": {"slice_rise": "slice_drop", "min_accuracy": "min_score"},
    "tagging": {"slice_rise": "slice_drop", "class_drop": "slice_drop", "min_accuracy": "min_score"},
    "multioutput": {"slice_drop": "slice_rise", "class_drop": "slice_rise", "min_accuracy": "max_error"},
}
# The limits of scores of which more is better, and the equivalent limits of an error.
_OF_SHARES = {"accuracy_drop": "error_rise", "champion_drop": "champion_rise", "min_score": "max_error"}
_OF_ERRORS = {"error_rise": "accuracy_drop", "champion_rise": "champion_drop"}


def find_misplaced_limits(
    task: Task, budget: Budget, gates: Gates, slices: Sequence[str] = (), score: Score | None = None
) -> Iterator[str]:
    """Yields a message for a score or a limit that belongs to the other task, and for limits that need `slices`."""
    other_task: Task = "classification" if predicts_numbers(task) else "regression"
    if task in ("multilabel", "multitask", "embedding", "tagging") and "min_accuracy" in gates.model_fields_set:
        other_task = "classification"
    score = score or default_score(task)
    if not score.suits(task):
        names = ", ".join(scores_of(task))
        owner = f"{describe_task(score.facts.task)}, not {describe_task(task)}"
        yield f"score: {score.title} is a score of {owner}: use one of {names}"
        return
    misplaced = _OF_OTHER_TASK[task] | (_OF_SHARES if score.is_error else _OF_ERRORS)
    if not predicts_numbers(task) and not score.is_error:
        misplaced |= {"max_error": "min_accuracy" if predicts_one_class(task) else "min_score"}
    for section, limits in (("budget", budget), ("gates", gates)):
        for name, equivalent in misplaced.items():
            if name in limits.model_fields_set:
                owner = f"{describe_task(other_task)}, not {describe_task(task)}"
                if score != default_score(task) and name not in _OF_OTHER_TASK[task]:
                    owner = f"{'a score' if score.is_error else 'an error'}, not of {score.title}"
                yield f"{section}.{name} is a limit of {owner}: use {section}.{equivalent}"
    for name in ("slice_drop", "slice_rise"):
        if getattr(budget, name) is not None and not slices:
            yield f"budget.{name} is a limit for slices, but training.slices names no columns"
