"""The image input of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.models.features.checkpoint_images import ImageSteps

Count = Annotated[int, Field(ge=1)]
MissingPart = Annotated[
    Literal["refuse", "absent"],
    Field(
        description="absent: it may be null, and the network knows that; beside other inputs only",
        exclude_if=lambda missing: missing == "refuse",
    ),
]
_OWN_STEPS = ("normalise", "brightest")


class ImageInput(Document):
    """An array column of pixels, in channel, row, column order.

    `standard` standardises all pixels together over the training split, `per_channel` each channel separately, `unit`
    divides by `brightest`. `resize` is applied first.

    `preprocessing: checkpoint` replaces these options by the steps of the checkpoint that the network starts from; with
    `resize`, to that size instead of the checkpoint's, without a crop.
    """

    kind: Literal["image"]
    column: str
    shape: Annotated[tuple[Count, Count, Count], Field(description="channels, height, width")]
    resize: Annotated[tuple[Count, Count] | None, Field(description="height, width of the network's input")] = None
    normalise: Literal["standard", "per_channel", "unit", "none"] = "standard"
    brightest: Annotated[float, Field(gt=0, allow_inf_nan=False, description="normalise unit only")] = 255.0
    missing: MissingPart = "refuse"
    preprocessing: Annotated[
        Literal["checkpoint"] | None, Field(exclude_if=is_unset, description="the steps of the network's checkpoint")
    ] = None
    steps: Annotated[
        ImageSteps | None, Field(exclude_if=is_unset, description="set by Bloomery: the checkpoint's preprocessing")
    ] = None

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.preprocessing == "checkpoint":
            for name in _OWN_STEPS:
                if name in self.model_fields_set:
                    raise ValueError(f"preprocessing checkpoint has its own steps; leave out `{name}`")
            if self.shape[0] not in (1, 3):
                raise ValueError(f"preprocessing checkpoint reads images of 1 or 3 channels, not {self.shape[0]}")
        elif self.steps is not None:
            raise ValueError("steps: set by Bloomery for `preprocessing: checkpoint`")
        return self

    @model_serializer(mode="wrap")
    def _write(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves out the options that a checkpoint's steps replace."""
        document: dict[str, Any] = write(self)
        if self.preprocessing == "checkpoint":
            for name in (*_OWN_STEPS, *(["resize"] if self.resize is None else [])):
                document.pop(name, None)
        return document

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    @property
    def input_shape(self) -> tuple[int, ...]:
        if self.steps is not None:
            return self.steps.output_shape(self.shape)
        return self.shape if self.resize is None else (self.shape[0], *self.resize)
