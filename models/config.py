"""What a recipe may say about features, network, training and compression.

Read by the command line before anything heavy is imported, so nothing here needs torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_contracts.documents import Document

Share = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1)]


class ImageInput(Document):
    """An array column whose values are the pixels of an image, channel after channel, row after row."""

    kind: Literal["image"]
    column: str
    shape: Annotated[tuple[Count, Count, Count], Field(description="channels, height, width")]
    normalise: Literal["standard", "none"] = "standard"


class Split(Document):
    """How rows are divided into parts: by a hash of their key, in each class separately."""

    train: Share = 0.7
    val: Share = 0.1
    test: Share = 0.2
    salt: str = ""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError(f"train, val and test add up to {self.train + self.val + self.test:g}, not to 1")
        return self


class Features(Document):
    """Which columns the network reads and how they become numbers."""

    key: str
    label: str
    inputs: Annotated[tuple[ImageInput, ...], Field(min_length=1, max_length=1)]
    split: Split = Split()


class Cnn(Document):
    """Blocks of convolution, batch normalisation, ReLU and 2 x 2 max pooling, then one hidden layer.

    `hidden` is the width of the hidden layer.
    """

    kind: Literal["cnn"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)] = (32, 64)
    kernel_size: Literal[1, 3, 5, 7] = 3
    hidden: Count = 128
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2


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
