"""The `features` section of a recipe. The command line imports it early, so it needs no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.data_contracts.records.checkpoint import Checkpoint
from bloomery.data_contracts.records.tensor_layout import Task, predicts_one_class
from bloomery.models.features.input_config import Input, SequenceInput, SeriesInput, ShapedInput
from bloomery.models.features.splits import Split

Classes = tuple[int | str, ...]  # the labels, in order
TABLE, _SEQUENCE = "table", "sequence"  # parts of mixed rows that have several columns
_LABEL = "_label"  # with more underscores where a column has that name


def is_optional(source: Input) -> bool:
    """Whether a row may lack the input, which a value of its own in the encoded row says."""
    return isinstance(source, ShapedInput) and not isinstance(source, SeriesInput) and source.missing == "absent"


def _part_column(source: Input) -> str | None:
    """The column of a shaped input; None if it has several."""
    return None if isinstance(source, SequenceInput) and source.column is None else source.columns[0]


def input_checkpoint(source: Input) -> Checkpoint | None:
    """The checkpoint that an input's preprocessing comes from, if it has one."""
    checkpoint: Checkpoint | None = getattr(source, "checkpoint", None)
    return checkpoint


def _without_checkpoint(source: Input) -> Input:
    return type(source).model_validate(source.model_dump(exclude={"checkpoint"}))


class Features(Document):
    """The columns that the network reads and how each is encoded.

    Rows are flat inputs side by side, one shaped input, or a mix of them.
    """

    key: str
    label: str
    labels: Annotated[
        tuple[str, ...] | None,
        Field(
            exclude_if=is_unset,
            description="the columns of several outputs, where `label` is a list",
        ),
    ] = None
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

    def identity(self) -> Any:
        """Checkpoints count by their files, not by their names and folders."""
        document = super().identity()
        for source, options in zip(self.inputs, document["inputs"], strict=True):
            checkpoint = input_checkpoint(source)
            if checkpoint is not None:
                options["checkpoint"] = checkpoint.identity()
        return document

    def without_checkpoints(self) -> Self:
        """The same features without the files of checkpoints: an encoder holds what it needs of them."""
        inputs = tuple(
            source if input_checkpoint(source) is None else _without_checkpoint(source) for source in self.inputs
        )
        return self.model_copy(update={"inputs": inputs})

    @model_validator(mode="before")
    @classmethod
    def _split_labels(cls, values: Any) -> Any:
        """`label: [width, height]` becomes `labels`, and `label` their names with commas."""
        if not isinstance(values, dict) or not isinstance(values.get("label"), list | tuple):
            return values
        names = tuple(map(str, values["label"]))
        if len(names) < 2 or len(set(names)) < len(names):
            finding = "names a column twice" if len(set(names)) < len(names) else "needs at least two columns"
            raise ValueError(f"`label` as a list {finding}; for one label write its name alone")
        tasks = {"regression": "multioutput", "classification": "multitask"}
        task = values.get("task", "classification")
        if task not in (*tasks, *tasks.values()):
            raise ValueError(
                "several labels need `task: regression` for numbers, or `task: classification` for a class of each; "
                "columns of 0 and 1 may be one set of labels: `data.lists` and `task: multilabel`"
            )
        return {**values, "label": ", ".join(names), "labels": names, "task": tasks.get(task, task)}

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.series is not None and len(self.inputs) > 1:
            raise ValueError("an input of kind series has windows over time, so it must be the only input")
        self._require_parts()
        columns = [column for source in self.inputs for column in source.columns]
        if (self.task in ("multioutput", "multitask")) != (self.labels is not None):
            raise ValueError(
                "a task of several outputs has a list in `label`, with `task: regression` or `classification`"
            )
        for label in self.label_columns:
            if label in columns and not self.is_forecast:
                raise ValueError(f"column {label!r} is the label, so the network must not read it")
            if label in (self.key, *self.split.columns) and self.labels is not None:
                raise ValueError(f"column {label!r} is a label, so it can be neither the key nor a column of the split")
        self._check_order()
        if self.labels is not None and self.series is not None:
            raise ValueError("windows over time predict one label: give one column in `label`")
        if self.unlabelled == "teach" and (not predicts_one_class(self.task) or self.series is not None):
            raise ValueError("`unlabelled: teach` needs a classification of rows that are not time series")
        if self.task == "embedding" and [source.kind for source in self.inputs] != ["text"]:
            raise ValueError("`task: embedding` needs one input of kind text, which also encodes the label")
        if self.task == "embedding" and len(columns) > 1:
            raise ValueError("`task: embedding` needs a vector for each text: leave out `pair` of the input")
        if self.task == "tagging" and ([source.kind for source in self.inputs] != ["text"] or len(columns) > 1):
            raise ValueError("`task: tagging` needs one input of kind text, whose column has lists of words")
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

    def _require_parts(self) -> None:
        for source in self.inputs:
            if is_optional(source) and len(self.inputs) == 1:
                raise ValueError(
                    f"`missing: absent` needs other inputs, from which a row without {source.columns[0]!r} is predicted"
                )

    @property
    def is_mixed(self) -> bool:
        """Whether there are inputs of different kinds, each with its part of a row."""
        return len(self.inputs) > 1 and any(isinstance(source, ShapedInput) for source in self.inputs)

    @property
    def part_inputs(self) -> dict[str, tuple[int, ...]]:
        """The name of each part of a mixed row, in order, with the positions of its inputs.

        A shaped input's part has the name of its column, or is `sequence` if it has several. All flat inputs are the
        part `table`. A name that is taken gets a `_` at its end.
        """
        shaped = [(number, source) for number, source in enumerate(self.inputs) if isinstance(source, ShapedInput)]
        named = [(_part_column(source), (number,)) for number, source in shaped]
        flat = tuple(number for number, source in enumerate(self.inputs) if not isinstance(source, ShapedInput))
        # Columns first, so that no other part takes their names.
        named.sort(key=lambda pair: pair[0] is None)
        parts: dict[str, tuple[int, ...]] = {}
        for name, numbers in [*named, *([(TABLE, flat)] if flat else [])]:
            name = name or _SEQUENCE
            while name in parts:
                name = f"{name}_"
            parts[name] = numbers
        return dict(sorted(parts.items(), key=lambda part: part[1]))

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
    def label_columns(self) -> tuple[str, ...]:
        """The columns of the label in the rows of the contract: one, or those of several outputs."""
        return (self.label,) if self.labels is None else self.labels

    @property
    def label_column(self) -> str:
        """The column of the split rows that holds the label; not the label's own if that may hold windows.

        Several labels are an array.
        """
        if self.labels is not None:
            return _free_name({*self.labels, self.key, *(name for source in self.inputs for name in source.columns)})
        if self.series is None or not self.is_forecast:
            return self.label
        series = (*self.series.columns, self.series.time, *self.series.groups)
        return _free_name({self.key, self.label, *series, *self.split.columns})

    @property
    def window_lengths(self) -> dict[str, int]:
        """The window length of each column that becomes windows over time."""
        return {} if self.series is None else dict.fromkeys(self.series.columns, self.series.length)


def _free_name(columns: Collection[str]) -> str:
    """A name for the label that no column has."""
    name = _LABEL
    while name in columns:
        name = f"_{name}"
    return name
