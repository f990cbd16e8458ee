"""The shift by which a network decides more rows to be out of scope."""

from __future__ import annotations

from bloomery.data_contracts.documents.documents import Document


class ScopeShift(Document):
    """A number in the bias of a network's head, which was added to the logit of the class out of scope."""

    label: int | str
    max_drop: float  # of the accuracy of the other classes' validation rows, by which it was chosen
    value: float
