"""Entities in sentences whose words have tags: where each begins and ends, by the rules of CoNLL.

A tag is O, or a prefix with a type: B-PER begins an entity, I-PER continues it, E-PER or L-PER ends it, and S-PER or
U-PER is an entity of one word. So IOB1, IOB2 (BIO), IOBES and BILOU are read alike. A prefix that does not fit counts
as `conlleval` counts it: I-PER after O or after another type begins an entity.

Source: Tjong Kim Sang & De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task", and its script `conlleval`.

Shapes: N sentences, T words or tokens, K tags, W words, E entities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NO_TAG = -1  # the code of a position without a tag
OUTSIDE = "O"
_PREFIXES = {"B": 1, "I": 2, "E": 3, "S": 4}
_SYNONYMS = {"L": "E", "U": "S"}  # of BILOU
_NUM_PREFIXES = 4


def tag_codes(tags: Sequence[int | str]) -> np.ndarray:
    """The code of each tag, int64 (K,): 0 for O, above 0 with a prefix, below -1 for tags that are no entities.

    The codes of a type follow each other. All codes differ.
    """
    types = {name: number for number, name in enumerate(entity_types(tags))}
    codes: list[int] = []
    for number, tag in enumerate(tags):
        prefix, name = _split_tag(tag)
        code = 0 if tag == OUTSIDE else -2 - number
        if name is not None:
            code = _NUM_PREFIXES * types[name] + _PREFIXES[prefix]
        codes.append(-2 - number if code in codes else code)
    return np.array(codes, np.int64)


def entity_types(tags: Sequence[int | str]) -> tuple[str, ...]:
    """The types of entities, in alphabetical order; empty if no tag has a prefix."""
    return tuple(sorted({name for tag in tags if (name := _split_tag(tag)[1]) is not None}))


def _split_tag(tag: int | str) -> tuple[str, str | None]:
    """The prefix and the type of a tag; no type if it has no prefix."""
    prefix, dash, name = str(tag).partition("-")
    prefix = _SYNONYMS.get(prefix, prefix)
    return (prefix, name) if dash and name and prefix in _PREFIXES else ("", None)


def code_tags(tags: Sequence[int | str], positions: np.ndarray) -> np.ndarray:
    """The codes of tags given by their positions in `tags`; NO_TAG where a position is negative."""
    return np.where(positions >= 0, tag_codes(tags)[np.maximum(positions, 0)], NO_TAG)


class Entities(NamedTuple):
    """Entities of all sentences, each an array (E,): sentence, number of the first word, after the last one, and type.

    Words are counted within a sentence. The type is a position in `entity_types`.
    """

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    kind: np.ndarray

    def keys(self, num_rows: int, num_words: int) -> np.ndarray:
        """A number (E,) for each entity of `num_rows` sentences of at most `num_words`; equal for equal ones only."""
        size = num_words + 1
        return ((self.kind * num_rows + self.row) * size + self.start) * size + self.stop

    def select(self, kind: int) -> Entities:
        """The entities of one type."""
        return Entities(*(values[self.kind == kind] for values in self))


def find_entities(codes_NT: np.ndarray, is_word_NT: np.ndarray) -> Entities:
    """The entities of sentences by the codes of their tags, without the positions that are not words."""
    row_W = np.nonzero(is_word_NT)[0]
    codes_W = codes_NT[is_word_NT]
    is_inside_W = codes_W > 0
    prefix_W = np.where(is_inside_W, (codes_W - 1) % _NUM_PREFIXES + 1, 0)
    kind_W = np.where(is_inside_W, (codes_W - 1) // _NUM_PREFIXES, -1)
    is_first_W = np.append(True, row_W[1:] != row_W[:-1])[: len(row_W)]
    # The tag before a word; that of the first word is O.
    before_W, kind_before_W = (
        np.append(fill, values[:-1])[: len(row_W)] for fill, values in ((0, prefix_W), (-1, kind_W))
    )
    before_W, kind_before_W = np.where(is_first_W, 0, before_W), np.where(is_first_W, -1, kind_before_W)
    begins = np.isin(prefix_W, [_PREFIXES["B"], _PREFIXES["S"]])
    follows_end = np.isin(before_W, [_PREFIXES["E"], _PREFIXES["S"]])
    is_start_W = is_inside_W & (begins | (before_W == 0) | follows_end | (kind_W != kind_before_W))
    # An entity ends before a word outside, before the start of another one, and with its sentence.
    is_next_open_W = np.append((is_inside_W & ~is_start_W)[1:], False)[: len(row_W)]
    is_last_W = is_inside_W & ~is_next_open_W
    word_W = np.arange(len(row_W)) - np.flatnonzero(is_first_W)[np.cumsum(is_first_W) - 1] if len(row_W) else row_W
    return Entities(row_W[is_start_W], word_W[is_start_W], word_W[is_last_W] + 1, kind_W[is_start_W])
