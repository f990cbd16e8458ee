"""What a recipe may say about features, compression, budget and gates.

Read by the command line before anything heavy is imported, so nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_contracts.documents import Document
from data_contracts.layouts import Task
from models.features.inputs import Count, Input, SeriesInput, ShapedInput
from models.splits import Share, Split
from models.training.config import Loop

Classes = tuple[int | str, ...]  # the labels, in order
Quantization = Literal["static", "dynamic"]
_LABEL = "_label"


class Features(Document):
    """Which columns the network reads and how they become numbers: flat inputs side by side, or one shaped input."""

    key: str
    label: str
    task: Task = "classification"
    inputs: Annotated[tuple[Input, ...], Field(min_length=1)]
    split: Split = Split()
    deduplicate: Annotated[
        bool, Field(description="of rows with equal inputs and label, only the one with the least key is kept")
    ] = False

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        shaped = [source.kind for source in self.inputs if isinstance(source, ShapedInput)]
        if shaped and len(self.inputs) > 1:
            raise ValueError(f"an input of kind {shaped[0]} has a shape of its own, so it must be the only input")
        read = [column for source in self.inputs for column in source.columns]
        if self.label in read and not self.is_forecast:
            raise ValueError(f"column {self.label!r} is the label, so the network must not read it")
        if self.key in read:
            raise ValueError(f"column {self.key!r} is the key, which tells rows apart and nothing about them")
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
                raise ValueError(f"column {column!r} becomes windows, so the split cannot read it as a single value")
        if self.deduplicate and series.time == self.key:
            raise ValueError("`deduplicate` has no meaning where the time is the key: no two rows share a time")
        if series.group == self.key:
            raise ValueError(f"column {self.key!r} is the key, so every row would be a series of its own")

    @property
    def series(self) -> SeriesInput | None:
        """The input that reads windows over time, if there is one: it is the only input then."""
        return next((source for source in self.inputs if isinstance(source, SeriesInput)), None)

    @property
    def is_forecast(self) -> bool:
        """Whether the label is that of a later row."""
        return self.series is not None and self.series.horizon > 0

    @property
    def label_column(self) -> str:
        """The column of the divided rows that holds the label: of its own, where the label's may hold windows."""
        return _LABEL if self.is_forecast else self.label

    @property
    def window_lengths(self) -> dict[str, int]:
        """How many values each column holds that is read as windows over time."""
        return {} if self.series is None else dict.fromkeys(self.series.columns, self.series.length)


class CandidateSpec(Document):
    """How one candidate is made from the trained network."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
    prune: Annotated[Share | None, Field(description="share of channels and hidden units to remove")] = None
    quantize: Annotated[
        Quantization | None,
        Field(description="to 8 bits; static: activations in ranges seen before, dynamic: as each row has them"),
    ] = None


def candidates_for(kind: str, how: Quantization | None = None) -> tuple[CandidateSpec, ...]:
    """The candidates that are worth making of a network of `kind`, where the recipe names none.

    `how` it is quantized follows from the kind, unless it is stated.
    """
    # Recurrent cells and attention have no 8-bit kernels for activations in fixed ranges.
    how = how or ("static" if kind in ("cnn", "lenet", "resnet", "mlp") else "dynamic")
    plain = (CandidateSpec(name="fp32"), CandidateSpec(name="int8", quantize=how))
    if kind not in ("cnn", "lenet", "resnet", "mlp", "ft_transformer"):  # what can be pruned
        return plain
    return (
        *plain,
        CandidateSpec(name="pruned", prune=0.5),
        CandidateSpec(name="pruned-int8", prune=0.5, quantize=how),
    )


class Compression(Document):
    """Which candidates the compress stage makes."""

    candidates: Annotated[
        tuple[CandidateSpec, ...] | None,
        Field(min_length=1, description="left out, those that suit the kind of network"),
    ] = None
    fine_tune: Loop = Loop(epochs=10, learning_rate=1e-3)
    calibration_rows: Count = 500
    latency_rounds: Count = 300

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
        if self.candidates is None:
            return self
        names = [candidate.name for candidate in self.candidates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"candidate named twice: {', '.join(twice)}")
        if not any(candidate.prune is None and candidate.quantize is None for candidate in self.candidates):
            raise ValueError("one candidate must be the network as trained (no prune, no quantize) to compare with")
        return self


class Budget(Document):
    """Hard limits for a candidate; what is left out is free."""

    accuracy_drop: Annotated[
        float, Field(gt=0, le=1, description="the 95% interval of the paired drop against fp32 must end below this")
    ] = 0.01
    error_rise: Annotated[
        float,
        Field(
            gt=0,
            description="of a regression, 0.01 for 1%: the 95% interval of the paired rise of RMSE must end below this",
        ),
    ] = 0.01
    size_bytes: Annotated[Count | None, Field(description="of the ONNX file as shipped")] = None
    latency_ms: Annotated[float | None, Field(gt=0, description="99th percentile for one row")] = None
    objective: Literal["size", "latency"] = "size"


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


_OF_TASK = {
    "classification": ("accuracy_drop", "min_accuracy", "champion_drop"),
    "regression": ("error_rise", "max_error", "champion_rise"),
}


def misplaced_limits(task: Task, budget: Budget, gates: Gates) -> Iterator[str]:
    """A sentence for each limit that is stated though it belongs to the other task."""
    other: Task = "regression" if task == "classification" else "classification"
    for place, limits in (("budget", budget), ("gates", gates)):
        for mine, theirs in zip(_OF_TASK[task], _OF_TASK[other], strict=True):
            if theirs in limits.model_fields_set:
                yield f"{place}.{theirs} is a limit of a {other}, and this is a {task}: state {place}.{mine}"
