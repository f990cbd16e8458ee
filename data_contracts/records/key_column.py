"""The column that holds the key beside the columns that a stage adds."""

from __future__ import annotations

# The columns of encoded rows, of predictions, and of the worst predictions.
_ADDED_COLUMNS = frozenset(
    {"x", "y", "truth", "prediction", "probabilities", "probability of the truth", "probability of the prediction"}
)


def key_column(key: str) -> str:
    """The key's column in encoded rows and in predictions: its own name, unless a column that is added has that name.

    Files of both kinds have no other column of the data, so `key_` in front is enough.
    """
    return f"key_{key}" if key in _ADDED_COLUMNS else key
