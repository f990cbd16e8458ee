"""What a recipe may say about candidates.

Read by the command line before anything heavy is imported, so nothing here needs torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data_contracts.documents import Document
from models.features.inputs import Count
from models.splits import Share
from models.training.config import Loop

Quantization = Literal["static", "dynamic"]


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
