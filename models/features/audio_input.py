"""The audio input of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.models.features.checkpoint_audio import AudioSteps
from bloomery.models.features.image_input import Count, MissingPart

_OWN_STEPS = ("window_s", "step_s", "num_mels", "normalise")


class AudioInput(Document):
    """An array column of audio samples, as a log-mel spectrogram (1, num_mels, frames).

    Each clip is truncated, or padded with silence at the end, to `duration_s`. `standard` standardises all values
    together over the training split.

    `preprocessing: checkpoint` replaces these options by the steps of the checkpoint that the network starts from: the
    waveform (1, 1, samples), or its spectrogram (1, mels, frames).
    """

    kind: Literal["audio"]
    column: str
    sample_rate: Annotated[Count, Field(description="samples per second")]
    duration_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    window_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.032
    step_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.016
    num_mels: Count = 40
    normalise: Literal["standard", "none"] = "standard"
    missing: MissingPart = "refuse"
    preprocessing: Annotated[
        Literal["checkpoint"] | None, Field(exclude_if=is_unset, description="the steps of the network's checkpoint")
    ] = None
    steps: Annotated[
        AudioSteps | None, Field(exclude_if=is_unset, description="set by Bloomery: the checkpoint's preprocessing")
    ] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.preprocessing == "checkpoint":
            for name in _OWN_STEPS:
                if name in self.model_fields_set:
                    raise ValueError(f"preprocessing checkpoint has its own steps; leave out `{name}`")
            return self
        if self.steps is not None:
            raise ValueError("steps: set by Bloomery for `preprocessing: checkpoint`")
        if self.window < 2 or self.step < 1 or self.num_samples < self.window:
            raise ValueError("window_s must span two samples, step_s one, and duration_s one window")
        if self.num_mels > self.window // 2:
            raise ValueError(f"a window of {self.window} samples cannot be divided into {self.num_mels} mel bands")
        return self

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the options that a checkpoint's steps replace."""
        document: dict[str, Any] = write(self)
        if self.preprocessing == "checkpoint":
            for name in _OWN_STEPS:
                document.pop(name, None)
        return document

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def num_samples(self) -> int:
        return round(self.duration_s * self.sample_rate)

    @property
    def window(self) -> int:
        """Samples in one window."""
        return round(self.window_s * self.sample_rate)

    @property
    def step(self) -> int:
        """Samples from the start of one window to the next."""
        return round(self.step_s * self.sample_rate)

    @property
    def frame_seconds(self) -> tuple[float, float]:
        """From the start of a frame of the encoded clip to that of the next, and the length of a frame."""
        if self.steps is not None:
            return self.steps.frame_seconds
        return self.step_s, self.window_s

    @property
    def input_shape(self) -> tuple[int, ...]:
        if self.steps is not None:
            return self.steps.output_shape(self.num_samples)
        return (1, self.num_mels, 1 + (self.num_samples - self.window) // self.step)
