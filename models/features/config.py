"""The `features` section of a recipe. The command line imports it early, so it needs no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.records.tensor_layout import Task, predicts_one_class
from bloomery.models.features.input_config import Input, SeriesInput, ShapedInput
from bloomery.models.features.splits import Split

Classes = tuple[int | str, ...]  # the labels, in order
_LABEL = "_label"  # with more underscores where a column has that name


class Features(Document):
    """The columns that the network reads and how each is encoded: flat inputs side by side, or one shaped input."""

    key: str
    label: str
    task: Task = "classification"
    order: Annotated[
        tuple[int | str, ...] | None,
        Field(
            exclude_if=is_unset,
            description="ordinal alone: the classes from the lowest to the highest; integers are ordered by default",
        ),
    ] = None
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
        columns = [column for source in self.inputs for column in source.columns]
        if self.label in columns and not self.is_forecast:
            raise ValueError(f"column {self.label!r} is the label, so the network must not read it")
        self._check_order()
        if self.unlabelled == "teach" and (not predicts_one_class(self.task) or self.series is not None):
            raise ValueError("`unlabelled: teach` needs a classification of rows that are not time series")
        if self.task == "embedding" and [source.kind for source in self.inputs] != ["text"]:
            raise ValueError("`task: embedding` needs one input of kind text, which also encodes the label")
        if self.key in columns:
            raise ValueError(f"column {self.key!r} is the key, which only identifies rows")
        for source in self.inputs:
            duplicates = sorted({column for column in source.columns if source.columns.count(column) > 1})
            if duplicates:
                raise ValueError(f"column named twice in one input: {', '.join(duplicates)}")
        if self.series is not None:
            self._require_order(self.series)
        return self

    def _check_order(self) -> None:
        if self.order is None:
            return
        if self.task != "ordinal":
            raise ValueError(f"`order` is that of ordinal classes, and the task is {self.task}: set `task: ordinal`")
        duplicates = sorted({str(name) for name in self.order if self.order.count(name) > 1})
        if duplicates:
            raise ValueError(f"`order` names a class twice: {', '.join(duplicates)}")
        if len(self.order) < 2 or len({type(name) for name in self.order}) > 1:
            raise ValueError("`order` needs at least two classes, all of them integers or all of them texts")

    def _require_order(self, series: SeriesInput) -> None:
        for column in self.split.columns:
            if column in series.columns:
                raise ValueError(f"column {column!r} becomes windows, so the split cannot use it as a single value")
        if self.deduplicate and series.time == self.key:
            raise ValueError("`deduplicate` has no effect where the time is the key: no two rows share a time")
        if self.key in series.groups:
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
        if self.series is None or not self.is_forecast:
            return self.label
        series = (*self.series.columns, self.series.time, *self.series.groups)
        columns = {self.key, self.label, *series, *self.split.columns}
        name = _LABEL
        while name in columns:
            name = f"_{name}"
        return name

    @property
    def window_lengths(self) -> dict[str, int]:
        """The window length of each column that becomes windows over time."""
        return {} if self.series is None else dict.fromkeys(self.series.columns, self.series.length)
