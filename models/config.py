"""What a recipe may say about features, network, training and compression.

Read by the command line before anything heavy is imported, so nothing here needs torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_contracts.documents import Document
from models.features.inputs import Count, Input, SeriesInput, ShapedInput
from models.splits import Share, Split

Classes = tuple[int | str, ...]  # the labels, in order


class Features(Document):
    """Which columns the network reads and how they become numbers: flat inputs side by side, or one shaped input."""

    key: str
    label: str
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
        if self.label in read:
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
    def window_lengths(self) -> dict[str, int]:
        """How many values each column holds that is read as windows over time."""
        return {} if self.series is None else dict.fromkeys(self.series.columns, self.series.length)


class Cnn(Document):
    """Blocks of convolution, batch normalisation, ReLU and 2 x 2 max pooling, then one hidden layer.

    `hidden` is the width of the hidden layer.
    """

    kind: Literal["cnn"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    kernel_size: Literal[1, 3, 5, 7] = 3
    hidden: Count = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


class Mlp(Document):
    """Layers of a linear map, batch normalisation, ReLU and dropout over one vector per row.

    `hidden` has the width of each layer.
    """

    kind: Literal["mlp"]
    hidden: Annotated[tuple[Count, ...], Field(min_length=1)] = (128, 64)
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    norm: Literal["batch", "none"] = "batch"


Model = Annotated[Cnn | Mlp, Field(discriminator="kind")]


class Loop(Document):
    """One pass of the training loop: AdamW under a one-cycle learning rate."""

    epochs: Count
    batch_size: Annotated[int, Field(ge=2, description="batch normalisation needs two rows")] = 64
    learning_rate: Annotated[float, Field(gt=0)] = 3e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Training(Loop):
    """The training stage."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    num_threads: Annotated[Count, Field(description="of the processor; the weights' bits depend on it")] = 1


class CandidateSpec(Document):
    """How one candidate is made from the trained network."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")]
    prune: Annotated[Share | None, Field(description="share of channels and hidden units to remove")] = None
    quantize: Literal["static"] | None = None


class Compression(Document):
    """Which candidates the compress stage makes."""

    candidates: Annotated[tuple[CandidateSpec, ...], Field(min_length=1)] = (
        CandidateSpec(name="fp32"),
        CandidateSpec(name="int8", quantize="static"),
        CandidateSpec(name="pruned", prune=0.5),
        CandidateSpec(name="pruned-int8", prune=0.5, quantize="static"),
    )
    fine_tune: Loop = Loop(epochs=10, learning_rate=1e-3)
    calibration_rows: Count = 500
    latency_rounds: Count = 300

    @model_validator(mode="after")
    def _has_baseline(self) -> Self:
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
    num_rows: Annotated[Count, Field(description="held-out rows that the bento is asked over HTTP")] = 100
