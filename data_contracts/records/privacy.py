"""The guarantee of a training with differential privacy."""

from __future__ import annotations

from bloomery.data_contracts.documents.documents import Document


class Privacy(Document):
    """The guarantee of differential privacy for each training row."""

    epsilon: float  # spent by the training
    delta: float

    def __str__(self) -> str:
        return f"private within epsilon {self.epsilon:.3g} and delta {self.delta:g}"
