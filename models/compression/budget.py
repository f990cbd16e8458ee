"""What a recipe may say about the budget: the limits of a candidate, and what is best within them.

Read by the command line before anything heavy is imported, so nothing here needs torch.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count

Percentile = Literal[50, 90, 95, 99]
Positive = Annotated[float, Field(gt=0)]
AtMostOne = Annotated[float, Field(gt=0, le=1)]


def _share_from(unit: str, number: Any) -> BeforeValidator:
    """Reads a share: a `number` such as 0.005, or a text such as `0.5pp` that counts hundredths in `unit`."""
    pattern = rf"^[0-9]+(\.[0-9]+)? ?{unit}$"

    def read(stated: Any) -> Any:
        if not isinstance(stated, str):
            return stated
        if not re.fullmatch(pattern, stated):
            raise ValueError(f"a share is a number such as 0.005, or 0.5{unit}")
        # In decimals: 0.7 / 100 is not 0.007 in binary.
        return float(Decimal(stated.removesuffix(unit).strip()) / 100)

    return BeforeValidator(read, json_schema_input_type=number | Annotated[str, Field(pattern=pattern)])


# A drop of accuracy is in points (`0.5pp`), a rise of an error is in percent of what it was (`1%`).
Drop = Annotated[AtMostOne, _share_from("pp", AtMostOne)]
Rise = Annotated[Positive, _share_from("%", Positive)]


class LatencyLimit(Document):
    """How long a batch may take: the limit of a percentile over the rounds in which it was timed."""

    batch: Annotated[Count, Field(description="rows that are asked at a time")] = 1
    percentile: Percentile = 99
    value: Annotated[Positive, Field(description="milliseconds")]


def _limit_from(stated: Any) -> Any:
    is_number = isinstance(stated, int | float) and not isinstance(stated, bool)
    # It says all of it: what a run states in short leaves nothing of what the recipe states at length.
    return {"batch": 1, "percentile": 99, "value": stated} if is_number else stated


class ObjectiveWeights(Document):
    """How much each ratio to fp32 counts, in a geometric mean."""

    size: Annotated[float, Field(ge=0)] = 0.0
    latency: Annotated[float, Field(ge=0)] = 0.0
    energy: Annotated[float, Field(ge=0, description="of a processor that tells how much it takes")] = 0.0

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.size + self.latency + self.energy <= 0:
            raise ValueError("at least one of size, latency and energy must weigh more than 0")
        return self


def _weights_from(stated: Any) -> Any:
    if isinstance(stated, str) and stated not in ObjectiveWeights.model_fields:
        raise ValueError("an objective is size, latency, energy, or weights such as {latency: 0.5, size: 0.5}")
    return {**dict.fromkeys(ObjectiveWeights.model_fields, 0.0), stated: 1.0} if isinstance(stated, str) else stated


class Budget(Document):
    """Hard limits for a candidate; what is left out is free. `objective` picks among those within all limits."""

    accuracy_drop: Annotated[
        Drop,
        Field(description="0.005 or 0.5pp: the 95% interval of the paired drop against fp32 must end at or below this"),
    ] = 0.01
    error_rise: Annotated[
        Rise,
        Field(
            description="of a regression, 0.01 or 1%: the 95% interval of the paired rise of RMSE must end at or below "
            "this"
        ),
    ] = 0.01
    slice_drop: Annotated[
        Drop | None, Field(description="the same as accuracy_drop in every slice that training.slices tells apart")
    ] = None
    slice_rise: Annotated[
        Rise | None, Field(description="the same as error_rise in every slice that training.slices tells apart")
    ] = None
    class_drop: Annotated[
        Drop | None, Field(description="the same as accuracy_drop among the rows of every class: its recall")
    ] = None
    size_bytes: Annotated[Count | None, Field(description="of the ONNX file as shipped")] = None
    latency_ms: Annotated[
        LatencyLimit | None,
        BeforeValidator(_limit_from, json_schema_input_type=Positive | LatencyLimit | None),
        Field(description="milliseconds: the 99th percentile for one row; or {batch, percentile, value}"),
    ] = None
    objective: Annotated[
        ObjectiveWeights,
        BeforeValidator(_weights_from, json_schema_input_type=Literal["size", "latency", "energy"] | ObjectiveWeights),
        Field(description="what is least in the one that is chosen; weights mix the ratios to fp32"),
    ] = ObjectiveWeights(size=1.0)

    @property
    def batch(self) -> int:
        """Rows at a time at which candidates are compared by their time."""
        return 1 if self.latency_ms is None else self.latency_ms.batch
