"""Recipe section `budget`: hard limits for a candidate, and the objective among those within them.

The command line reads this module before any heavy import, so nothing here needs torch.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document, is_unset
from bloomery.models.features.input_config import Count

Percentile = Literal[50, 90, 95, 99]
Positive = Annotated[float, Field(gt=0)]
AtMostOne = Annotated[float, Field(gt=0, le=1)]


def _share_parser(unit: str, number_type: Any) -> BeforeValidator:
    """Reads a share: a number such as 0.005, or a text such as `0.5pp`, in hundredths with `unit`."""
    pattern = rf"^[0-9]+(\.[0-9]+)? ?{unit}$"

    def parse(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not re.fullmatch(pattern, value):
            raise ValueError(f"a share is a number such as 0.005, or 0.5{unit}")
        # Decimal arithmetic: in binary 0.7 / 100 is not 0.007.
        return float(Decimal(value.removesuffix(unit).strip()) / 100)

    return BeforeValidator(parse, json_schema_input_type=number_type | Annotated[str, Field(pattern=pattern)])


# A drop of accuracy is in percentage points (`0.5pp`), a rise of an error is relative (`1%`).
Drop = Annotated[AtMostOne, _share_parser("pp", AtMostOne)]
Rise = Annotated[Positive, _share_parser("%", Positive)]


class LatencyLimit(Document):
    """Limit on a percentile of the time for one batch."""

    batch_size: Annotated[Count, Field(description="rows in a batch")] = 1
    percentile: Percentile = 99
    value: Annotated[Positive, Field(description="milliseconds")]


def _expand_limit(value: Any) -> Any:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # All fields are set, so a number on the command line replaces a whole mapping of the recipe.
    return {"batch_size": 1, "percentile": 99, "value": value} if is_number else value


class ObjectiveWeights(Document):
    """Exponents of the ratios to fp32 in a geometric mean."""

    size: Annotated[float, Field(ge=0)] = 0.0
    latency: Annotated[float, Field(ge=0)] = 0.0
    energy: Annotated[float, Field(ge=0, description="needs a processor with an energy counter")] = 0.0

    @model_validator(mode="after")
    def _weighs_something(self) -> Self:
        if self.size + self.latency + self.energy <= 0:
            raise ValueError("at least one of size, latency and energy must weigh more than 0")
        return self


def _expand_objective(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    fields = ObjectiveWeights.model_fields
    weights = {"balanced": {"size": 0.5, "latency": 0.5}, **{field: {field: 1.0} for field in fields}}.get(value)
    if weights is None:
        raise ValueError("an objective is balanced, size, latency, energy, or weights as in {latency: 0.7, size: 0.3}")
    return {**dict.fromkeys(fields, 0.0), **weights}


class Budget(Document):
    """Hard limits for a candidate; missing ones do not apply. `objective` ranks those within all limits."""

    accuracy_drop: Annotated[
        Drop,
        Field(description="0.005 or 0.5pp: the upper 95% limit of the drop against fp32 must be at or below this"),
    ] = 0.01
    error_rise: Annotated[
        Rise,
        Field(description="regression, 0.01 or 1%: the upper 95% limit of the rise of RMSE must be at or below this"),
    ] = 0.01
    slice_drop: Annotated[Drop | None, Field(description="accuracy_drop for each slice of training.slices")] = None
    slice_rise: Annotated[Rise | None, Field(description="error_rise for each slice of training.slices")] = None
    class_drop: Annotated[
        Drop | None,
        Field(
            description="accuracy_drop for the rows of each class, which is a drop of its recall; "
            "without it no class may have a demonstrable drop"
        ),
    ] = None
    size_bytes: Annotated[Count | None, Field(description="size of the ONNX file as shipped")] = None
    vector_bytes: Annotated[
        Count | None, Field(exclude_if=is_unset, description="embedding: size of a vector, 4 bytes or 1 per value")
    ] = None
    latency_ms: Annotated[
        LatencyLimit | None,
        BeforeValidator(_expand_limit, json_schema_input_type=Positive | LatencyLimit | None),
        Field(description="milliseconds: the 99th percentile for one row; or {batch_size, percentile, value}"),
    ] = None
    objective: Annotated[
        ObjectiveWeights,
        BeforeValidator(
            _expand_objective,
            json_schema_input_type=Literal["balanced", "size", "latency", "energy"] | ObjectiveWeights,
        ),
        Field(
            description="minimized among the candidates within the budget; weights combine the ratios to fp32. "
            "`balanced` weighs size and latency alike"
        ),
    ] = ObjectiveWeights(size=0.5, latency=0.5)

    @property
    def batch_size(self) -> int:
        """Rows in the batch that is timed to compare candidates."""
        return 1 if self.latency_ms is None else self.latency_ms.batch_size
