"""Checks that the limits in a recipe's budget and gates belong to its task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.models.compression.budget import Budget
from bloomery.models.evaluation.gates import Gates

# The limits of each task, and the equivalent limit of the other task.
_LIMITS_OF_TASK: dict[Task, dict[str, str]] = {
    "classification": {
        "accuracy_drop": "error_rise",
        "slice_drop": "slice_rise",
        "class_drop": "slice_rise",
        "min_accuracy": "max_error",
        "champion_drop": "champion_rise",
    },
    "regression": {
        "error_rise": "accuracy_drop",
        "slice_rise": "slice_drop",
        "max_error": "min_accuracy",
        "champion_rise": "champion_drop",
    },
}


def find_misplaced_limits(task: Task, budget: Budget, gates: Gates, slices: Sequence[str] = ()) -> Iterator[str]:
    """Yields a message for each stated limit that belongs to the other task, or that needs `slices`."""
    other_task: Task = "regression" if task == "classification" else "classification"
    for section, limits in (("budget", budget), ("gates", gates)):
        for misplaced, equivalent in _LIMITS_OF_TASK[other_task].items():
            if misplaced in limits.model_fields_set:
                yield f"{section}.{misplaced} is a limit of a {other_task}, not a {task}: use {section}.{equivalent}"
    for name in ("slice_drop", "slice_rise"):
        if getattr(budget, name) is not None and not slices:
            yield f"budget.{name} is a limit for slices, but training.slices names no columns"
