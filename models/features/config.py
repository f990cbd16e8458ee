"""The `features` section of a recipe. The command line imports it early, so it needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.monitoring import Span
from bloomery.data_contracts.records.tensor_layout import Task
from bloomery.models.compression.budget import Budget
from bloomery.models.features.input_config import Count, Input, SeriesInput, ShapedInput
from bloomery.models.features.splits import Split

Classes = tuple[int | str, ...]  # the labels, in order
_LABEL = "_label"


class Features(Document):
    """The columns that the network reads and how each is encoded: flat inputs side by side, or one shaped input."""

    key: str
    label: str
    task: Task = "classification"
    inputs: Annotated[tuple[Input, ...], Field(min_length=1)]
    split: Split = Split()
    unlabelled: Annotated[
        Literal["refuse", "teach"],
        Field(description="rows whose label is null; teach: students learn the trained network's predictions for them"),
    ] = "refuse"
    deduplicate: Annotated[
        bool, Field(description="keep only the row with the smallest key of rows with equal inputs and label")
    ] = False

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        shaped = [source.kind for source in self.inputs if isinstance(source, ShapedInput)]
        if shaped and len(self.inputs) > 1:
            raise ValueError(f"an input of kind {shaped[0]} has a shape of its own, so it must be the only input")
        read = [column for source in self.inputs for column in source.columns]
        if self.label in read and not self.is_forecast:
            raise ValueError(f"column {self.label!r} is the label, so the network must not read it")
        if self.unlabelled == "teach" and (self.task == "regression" or self.series is not None):
            raise ValueError("`unlabelled: teach` needs a classification of rows that are not time series")
        if self.key in read:
            raise ValueError(f"column {self.key!r} is the key, which only identifies rows")
        for source in self.inputs:
            twice = sorted({column for column in source.columns if source.columns.count(column) > 1})
            if twice:
                raise ValueError(f"column named twice in one input: {', '.join(twice)}")
        if self.series is not None:
            self._require_order(self.series)
        return self

    def _require_order(self, series: SeriesInput) -> None:
        for column in self.split.columns:
            if column in series.columns:
                raise ValueError(f"column {column!r} becomes windows, so the split cannot use it as a single value")
        if self.deduplicate and series.time == self.key:
            raise ValueError("`deduplicate` has no effect where the time is the key: no two rows share a time")
        if series.group == self.key:
            raise ValueError(f"column {self.key!r} is the key, so every row would be a series of its own")

    @property
    def series(self) -> SeriesInput | None:
        """The time series input, or None. Where there is one, it is the only input."""
        return next((source for source in self.inputs if isinstance(source, SeriesInput)), None)

    @property
    def is_forecast(self) -> bool:
        """Whether the label comes from a later row."""
        return self.series is not None and self.series.horizon > 0

    @property
    def label_column(self) -> str:
        """The column of the split rows that holds the label; not the label's own if that may hold windows."""
        return _LABEL if self.is_forecast else self.label

    @property
    def window_lengths(self) -> dict[str, int]:
        """The window length of each column that becomes windows over time."""
        return {} if self.series is None else dict.fromkeys(self.series.columns, self.series.length)


class RecentData(Document):
    """Which logged rows both versions are asked, once their labels have come: those of the last `window`."""

    window: Span = "30d"
    min_rows: Annotated[int, Field(ge=10, description="with fewer labelled rows nothing is compared")] = 200
    labels: Annotated[
        str | None, Field(description="where labels arrive, as in `monitor`; left out, labels/NAME of the state folder")
    ] = None


class Gates(Document):
    """What a packaged version must reach before it may replace the champion."""

    min_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.0
    champion_drop: Annotated[
        float,
        Field(gt=0, le=1, description="the 95% interval of the paired drop against the champion must end below this"),
    ] = 0.01
    max_error: Annotated[
        float | None, Field(gt=0, description="of a regression: the RMSE in the units of the label")
    ] = None
    champion_rise: Annotated[
        float,
        Field(
            gt=0,
            description="of a regression: the 95% interval of the rise of RMSE against the champion ends below this",
        ),
    ] = 0.01
    num_rows: Annotated[Count, Field(description="held-out rows that the bento is asked over HTTP")] = 100
    recent: Annotated[
        RecentData, Field(description="the version is no worse than the champion on these either, by the same limit")
    ] = RecentData()


# The limits that belong to one task, and what is stated in their place for the other.
_OF_TASK: dict[Task, dict[str, str]] = {
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


def misplaced_limits(task: Task, budget: Budget, gates: Gates, slices: Sequence[str] = ()) -> Iterator[str]:
    """A sentence for each limit that is stated though it belongs to the other task, or has no `slices` to hold in."""
    other: Task = "regression" if task == "classification" else "classification"
    for place, limits in (("budget", budget), ("gates", gates)):
        for theirs, mine in _OF_TASK[other].items():
            if theirs in limits.model_fields_set:
                yield f"{place}.{theirs} is a limit of a {other}, and this is a {task}: state {place}.{mine}"
    for name in ("slice_drop", "slice_rise"):
        if getattr(budget, name) is not None and not slices:
            yield f"budget.{name} holds in slices, and there are none: name their columns in training.slices"
