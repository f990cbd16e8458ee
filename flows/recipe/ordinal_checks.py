"""Checks the order of the classes of an ordinal task, before any row is read."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.odcs.contract import Column
from bloomery.models.features.config import Features
from bloomery.models.training.config import Training


def check_ordinal(features: Features, label: Column | None, training: Training | None) -> Iterator[str]:
    """Yields contradictions between the order and the label's column; nothing for other tasks."""
    if features.task != "ordinal" or label is None:
        return
    if training is not None and training.strategy == "pipeline":
        yield "training.strategy: the stages of a pipeline do not learn ordered classes; use ddp, fsdp or tensor"
    if label.logical_type not in ("integer", "string"):
        return
    valid_values = _valid_values(label)
    if features.order is None:
        if label.logical_type == "string":
            example = ", ".join(map(str, valid_values[:5])) or "low, medium, high"
            yield (
                f"features.order: missing; texts of column {label.name!r} have no order of their own: list the classes "
                f"from the lowest to the highest, as in `order: [{example}]`, in your order"
            )
        return
    type_of_values = int if label.logical_type == "integer" else str
    if not all(isinstance(name, type_of_values) for name in features.order):
        quoted_names = ", ".join(map(repr, features.order[:5]))
        hint = "write them without quotes" if type_of_values is int else "write them in quotes"
        yield f"features.order: column {label.name!r} is {label.logical_type}, but the order has {quoted_names}; {hint}"
        return
    missing = [value for value in valid_values if value not in features.order]
    unknown = [name for name in features.order if valid_values and name not in valid_values]
    for names, finding, remedy in (
        (missing, f"misses classes that are valid values of column {label.name!r}", "add them at their places"),
        (unknown, f"names classes that are no valid values of column {label.name!r}", "correct them, or the contract"),
    ):
        if names:
            yield f"features.order {finding}: {', '.join(map(str, names[:5]))}; {remedy}"


def _valid_values(label: Column) -> list[int | str]:
    """The values that the contract allows; none if it does not list them."""
    for check in label.quality:
        if check.metric == "invalidValues" and check.arguments is not None and check.arguments.valid_values is not None:
            return [value for value in check.arguments.valid_values if value is not None]
    return []
