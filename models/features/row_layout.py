"""The layout of encoded rows: that of one shaped input, of flat inputs side by side, or of a mix of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from bloomery.data_contracts.records.tensor_layout import Layout, Part, mixed_layout
from bloomery.models.features.config import Features, is_optional
from bloomery.models.features.input_config import CategoryInput, SequenceInput
from bloomery.models.features.kinds import category
from bloomery.models.features.kinds.category import FittedCategories
from bloomery.models.features.kinds.text import FittedText

_KINDS: dict[str, Literal["flat", "image", "sequence", "tokens"]] = {
    "image": "image",
    "audio": "image",
    "series": "sequence",
    "sequence": "sequence",
    "text": "tokens",
}
_Shapes = Sequence[tuple[int, ...]]


def row_layout(features: Features, fitted: Sequence[Any], shapes: _Shapes) -> Layout:
    """The layout of a row, from the fitted state and the encoded shape of each input."""
    if not features.is_mixed:
        return _layout_of(range(len(features.inputs)), features, fitted, shapes)
    return mixed_layout(
        Part(
            name=name,
            layout=_layout_of(numbers, features, fitted, shapes),
            is_optional=any(is_optional(features.inputs[number]) for number in numbers),
        )
        for name, numbers in features.part_inputs.items()
    )


def _layout_of(numbers: Sequence[int], features: Features, fitted: Sequence[Any], shapes: _Shapes) -> Layout:
    """The layout of one shaped input, or of flat inputs side by side."""
    source, first = features.inputs[numbers[0]], fitted[numbers[0]]
    kind = _KINDS.get(source.kind, "flat")
    return Layout(
        kind=kind,
        shape=shapes[numbers[0]] if len(numbers) == 1 else (sum(shapes[number][0] for number in numbers),),
        num_tokens=first.num_tokens if isinstance(first, FittedText) else None,
        separator=first.separator if isinstance(first, FittedText) else None,
        is_padded=isinstance(source, SequenceInput) and source.is_padded,
        categories=_category_positions(numbers, features, fitted, shapes) if kind == "flat" else (),
    )


def _category_positions(
    numbers: Sequence[int], features: Features, fitted: Sequence[Any], shapes: _Shapes
) -> tuple[tuple[int, int], ...]:
    """Each position of a flat row of these inputs that holds a category index, with the number of categories."""
    positions, start = [], 0
    for number in numbers:
        source, categories = features.inputs[number], fitted[number]
        if isinstance(source, CategoryInput) and isinstance(categories, FittedCategories):
            positions += [(start + position, count) for position, count in category.index_columns(source, categories)]
        start += shapes[number][0]
    return tuple(positions)
