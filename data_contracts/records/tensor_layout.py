"""The tensor layout of one encoded row, and the task of the network."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, is_empty, is_unset

# classification: one of several classes. ordinal: the same, and the classes have an order. multilabel: any number of
# them, also none. multioutput: a regression with several labels. multitask: a class of each of several labels.
# embedding: vectors of texts, which are close to those of the texts that belong to them. tagging: one of several tags
# for each word of a sentence.
Task = Literal[
    "classification", "regression", "multilabel", "ordinal", "multioutput", "multitask", "embedding", "tagging"
]


def predicts_one_class(task: Task) -> bool:
    """Whether a row has exactly one of several classes, with or without an order."""
    return task in ("classification", "ordinal")


def predicts_numbers(task: Task) -> bool:
    """Whether a row has a number, or several."""
    return task in ("regression", "multioutput")


def predicts_row_classes(task: Task) -> bool:
    """Whether a task predicts classes of rows, one or several for each, and not of the words in them."""
    return predicts_one_class(task) or task in ("multilabel", "multitask")


def describe_task(task: Task) -> str:
    """The task with its article, such as `a regression`, `an ordinal task` or `an embedding`."""
    names: dict[Task, str] = {
        "ordinal": "an ordinal task",
        "multioutput": "a regression of several labels",
        "multitask": "a classification of several labels",
        "embedding": "an embedding",
        "tagging": "a tagging task",
    }
    return names.get(task, f"a {task}")


class Layout(Document):
    """The shape and meaning of one encoded row, float32.

    flat: (F,), a vector of values. image: (C, H, W), and audio as (1, mels, frames). sequence: (T, F), T steps of F
    values. tokens: (T,), integers below `num_tokens`, where 0 is padding at the end. mixed: (F,), the values of its
    `parts` one after the other; those of an optional part are followed by 1, or by 0 where the part is missing.
    """

    kind: Literal["flat", "image", "sequence", "tokens", "mixed"]
    shape: Annotated[tuple[int, ...], Field(min_length=1)]
    num_tokens: Annotated[int | None, Field(description="tokens alone: 0 is padding, the others are words")] = None
    separator: Annotated[
        int | None,
        Field(exclude_if=is_unset, description="pairs of texts alone: the token between the first and the second text"),
    ] = None
    is_padded: Annotated[
        bool,
        Field(description="sequence alone: the last value of a step is 1, or 0 where it is padding"),
    ] = False
    categories: Annotated[
        tuple[tuple[int, int], ...],
        Field(description="flat alone: each position that holds the number of a category, and how many there are"),
    ] = ()
    parts: Annotated[
        tuple[Part, ...],
        Field(description="mixed alone: the inputs of different kinds", exclude_if=is_empty),
    ] = ()

    @property
    def num_values(self) -> int:
        """The number of values of one row."""
        return math.prod(self.shape)

    @property
    def part_slices(self) -> tuple[PartSlice, ...]:
        """Where each part lies in a mixed row, in order."""
        slices, start = [], 0
        for part in self.parts:
            stop = start + part.layout.num_values
            slices.append(PartSlice(part, start, stop))
            start = stop + part.is_optional
        return tuple(slices)


class Part(Document):
    """The part of a mixed row that one network reads: an input with a shape, or all flat inputs together."""

    name: str
    layout: Layout
    is_optional: bool = False


class PartSlice(NamedTuple):
    """The positions of a part in a mixed row: `start` to `stop`, and `stop` says whether an optional part is there."""

    part: Part
    start: int
    stop: int


def mixed_layout(parts: Iterable[Part]) -> Layout:
    """The layout of rows with these parts."""
    parts = tuple(parts)
    num_values = sum(part.layout.num_values + part.is_optional for part in parts)
    return Layout(kind="mixed", shape=(num_values,), parts=parts)
