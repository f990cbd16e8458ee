"""Finds tags of words in the profiled rows: an array of words, and an array with a tag for each."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.serving.entities import entity_types
from bloomery.tasks.infrastructure.parquet import read_batches
from bloomery.tasks.scaffolding.planning.input_plans import InputPlan, PlannedInput
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile
from bloomery.tasks.scaffolding.profiling.source_rows import ROWS_FILE

_MIN_EQUAL_SHARE = 0.95  # of the rows, whose arrays are equally long
_MIN_REPEATING_SHARE = 0.2  # of the rows with a tag that occurs twice, where nobody has said that they are tags
_MIN_ROWS_PER_TAG = 10  # with fewer, the training split might have none
_MAX_TAGS = 1_000
_VOCABULARY_SIZE = 20_000
_TOKENS_PER_WORD = 2  # of a pretrained tokenizer, with a margin
_LENGTH_STEP, _MAX_LENGTH = 8, 512  # tokens of a row


class WordTags(NamedTuple):
    """A column with tags for the words of another one, by the source's names.

    `counts` are the tags with their numbers of words, in order, and `rare` those that few rows have.
    """

    column: str
    words: str
    counts: tuple[tuple[int | str, int], ...]
    rare: tuple[int | str, ...]
    max_words: int
    num_unequal: int

    @property
    def reason(self) -> str:
        return f"{self.column} has as many elements as {self.words} in nearly all rows, a tag for each word"

    @property
    def has_entities(self) -> bool:
        return bool(entity_types([tag for tag, _ in self.counts]))

    def plan_inputs(self, profile: SourceProfile, reserved: dict[str, str], checkpoint: str | None = None) -> InputPlan:
        """Returns the input of words; the other columns are not used. A `checkpoint` has several tokens for a word."""
        num_tokens = self.max_words * (1 if checkpoint is None else _TOKENS_PER_WORD)
        length = min(math.ceil(num_tokens / _LENGTH_STEP) * _LENGTH_STEP, _MAX_LENGTH)
        options = {
            "kind": "text",
            "column": self.words,
            "tokenizer": "words",
            "length": length,
            "vocabulary_size": _VOCABULARY_SIZE,
        }
        reason = f"the words of a sentence, at most {self.max_words:,} of them; longer sentences would be cut off"
        others = (column.name for column in profile.columns if column.name not in (self.words, *reserved))
        unused = reserved | dict.fromkeys(others, "a tag depends on the words of its sentence alone")
        return InputPlan((PlannedInput(options, reason),), unused)

    def describe(self) -> str:
        """Returns how many tags are learnt, and which few rows have."""
        listing = ", ".join(map(str, self.rare[:5])) + (", …" if len(self.rare) > 5 else "")
        rare = f"; fewer than {_MIN_ROWS_PER_TAG} rows have {listing}" if self.rare else ""
        return f"{len(self.counts) + len(self.rare)} tags for the words in {self.words}{rare}"


def find_word_tags(profile: SourceProfile, scratch: Path, label: str, *, is_requested: bool) -> WordTags | None:
    """Returns the words that the arrays of `label` tag, by the source's names; None if they are no tags.

    Raises:
        DataUnfit: tags are requested, and no other column has as many elements.
    """
    column = profile.existing_column(label)
    candidates = [other for other in profile.columns if other.name != label and _has_texts(other)]
    if column.logical_type == "array" and column.element_type in ("string", "integer"):
        for other in candidates:
            tags = _count_tags(scratch, column, other, is_requested=is_requested)
            if tags is not None:
                return tags
    if not is_requested:
        return None
    kind = column.logical_type if column.element_type is None else f"an array of {column.element_type}"
    arrays = ", ".join(other.name for other in candidates) or "none"
    raise DataUnfit(
        f"column {label} is {kind}, and no array of words has as many elements in nearly all rows",
        required="an array of tags, and an array with as many words, such as the columns tags and words of a Parquet "
        f"or JSON file; arrays of texts beside it: {arrays}",
        where="--task tagging",
        remedy="choose another --label; texts with blanks become arrays by `data.lists` with `repeats: true`",
    )


def _has_texts(column: ColumnProfile) -> bool:
    return column.logical_type == "array" and column.element_type == "string"


def _count_tags(scratch: Path, label: ColumnProfile, words: ColumnProfile, *, is_requested: bool) -> WordTags | None:
    """Returns the tags, if nearly all rows have as many as words, and they repeat within rows."""
    num_words: Counter[Any] = Counter()
    num_rows: Counter[Any] = Counter()
    num_equal = num_repeating = num_all = max_words = 0
    for batch in read_batches(scratch / ROWS_FILE, [label.name, words.name]):
        for tags, sentence in zip(*(map(_read_list, batch.column(at).to_pylist()) for at in (0, 1)), strict=True):
            num_all += 1
            if tags is None or sentence is None or len(tags) != len(sentence):
                continue
            num_equal += 1
            counts = Counter(tags)
            num_repeating += len(counts) < len(tags)
            max_words = max(max_words, len(sentence))
            num_words.update(counts)
            num_rows.update(counts.keys())
    is_clear = is_requested or num_repeating >= _MIN_REPEATING_SHARE * num_all
    common = sorted(tag for tag, num in num_rows.items() if tag is not None and num >= _MIN_ROWS_PER_TAG)
    if not num_all or num_equal < _MIN_EQUAL_SHARE * num_all or not is_clear or not 2 <= len(common) <= _MAX_TAGS:
        return None
    rare = tuple(sorted(tag for tag in num_rows if tag is not None and tag not in set(common)))
    counts_of_tags = tuple((tag, num_words[tag]) for tag in common)
    return WordTags(label.name, words.name, counts_of_tags, rare, max_words, num_all - num_equal)


def _read_list(value: Any) -> list[Any] | None:
    """The elements of an array, which may be written as JSON."""
    elements = json.loads(value) if isinstance(value, str) else value
    return elements if isinstance(elements, list) else None
