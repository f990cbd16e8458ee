"""Plans texts, images, recordings and arrays: beside columns of single values, or a text as the only input."""

from __future__ import annotations

import math
from collections.abc import Sequence

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.scaffolding.planning.array_inputs import plan_array, plan_media
from bloomery.tasks.scaffolding.planning.input_plans import InputPlan, PlannedInput
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile

_CHARACTERS_PER_TOKEN = 3
_MIN_TOKENS, _MAX_TOKENS = 16, 256
_MAX_TOKENS_BESIDE = 128  # of a text beside other inputs
_BAG_ROWS = 20_000  # with fewer, the words of a text beside columns teach more than the order of their parts
_MAX_WORDS = 8_000
_MAX_TEXTS = 3  # beside other inputs; each has a network of its own
_MIN_WORDS = 2.25  # on average; shorter texts are rather codes or names of people and places
_MIN_TEXT_LENGTH = 8  # characters of the longest one: shorter texts are rather codes
_MIN_DISTINCT, _MIN_DISTINCT_SHARE = 50, 0.1  # of texts that are no categories
_MAX_ARRAYS = 3  # of numbers, beside other inputs
_MAX_COLUMNS_BESIDE_ARRAY = 3  # an array of numbers tells more than so few columns


def is_prose(column: ColumnProfile) -> bool:
    """Whether a column has sentences, titles or descriptions, most of which differ from others."""
    num_required = max(_MIN_DISTINCT, _MIN_DISTINCT_SHARE * column.num_valid)
    return column.logical_type == "string" and column.mean_words >= _MIN_WORDS and column.num_distinct > num_required


def plan_mixed(
    profile: SourceProfile,
    data: DataSource,
    tabular: Sequence[PlannedInput],
    texts: Sequence[ColumnProfile],
    unused: dict[str, str],
    shape: Sequence[int],
) -> InputPlan | None:
    """Returns the inputs where there are texts, images or recordings beside others, or arrays beside many columns.

    Else None: one input is read, or columns of single values alone.

    Args:
        tabular: the inputs of single values.
        texts: the columns of prose.
        shape: the sizes of an array where the source states them.
    """
    arrays = [column for column in profile.columns if column.logical_type == "array" and column.name not in unused]
    arrays.sort(key=lambda column: not _is_media(column, data))
    reasons: dict[str, str] = {}
    parts: list[PlannedInput] = []
    num_media = 0
    for column in arrays:
        part, is_media = _plan_part(column, profile, data, shape), _is_media(column, data)
        if isinstance(part, str):
            reasons[column.name] = part
        elif is_media or len(parts) < num_media + _MAX_ARRAYS:
            parts.append(part)
            num_media += is_media
        else:
            reasons[column.name] = "the model reads other arrays"
    num_columns = len({name for planned in tabular for name in planned.options["columns"]})
    if not (texts or num_media or num_columns > _MAX_COLUMNS_BESIDE_ARRAY):
        return None
    if bool(tabular) + len(texts) + len(parts) < 2:
        return None
    longest = sorted(texts, key=lambda column: -(column.usual_length or 0))[:_MAX_TEXTS]
    is_bag = bool(tabular) and not parts and profile.num_rows < _BAG_ROWS
    inputs = (*tabular, *(_plan_prose(column, profile.num_rows, is_bag=is_bag) for column in longest), *parts)
    reasons |= {column.name: "the model reads longer texts" for column in texts if column not in longest}
    names = {column.name for column in longest}
    return InputPlan(inputs, {name: why for name, why in {**unused, **reasons}.items() if name not in names})


def plan_text(profile: SourceProfile, texts: Sequence[ColumnProfile], unused: dict[str, str]) -> InputPlan:
    """Plans the longest text as the single input, where no other column is left to learn from."""
    long_texts = [column for column in texts if (column.max_length or 0) >= _MIN_TEXT_LENGTH]
    if not long_texts:
        return InputPlan((), unused)
    longest = max(long_texts, key=lambda column: column.max_length or 0)
    length = _num_tokens(longest.max_length or 0, _MAX_TOKENS)
    options = {
        "kind": "text",
        "column": longest.name,
        "length": length,
        "vocabulary_size": _vocabulary_size(profile.num_rows),
    }
    if longest.num_missing:
        options["missing"] = "empty"
    planned_input = PlannedInput(options, f"text of at most {length} tokens; longer text is cut")
    skipped = {column.name: "the model reads another text" for column in long_texts}
    return InputPlan((planned_input,), {name: why for name, why in (unused | skipped).items() if name != longest.name})


def _is_media(column: ColumnProfile, data: DataSource) -> bool:
    return column.media is not None or (column.logical_type == "array" and data.has_media)


def _plan_part(
    column: ColumnProfile, profile: SourceProfile, data: DataSource, shape: Sequence[int]
) -> PlannedInput | str:
    if column.media is not None:
        return plan_media(column, profile, data, may_be_absent=True)
    return plan_array(column, profile, data, shape)


def _plan_prose(column: ColumnProfile, num_rows: int, *, is_bag: bool) -> PlannedInput:
    """Returns the input of a text beside others; its length is that of 95% of the rows.

    Args:
        is_bag: a network without the order of the tokens reads them, so they are words.
    """
    length = _num_tokens(column.usual_length or 0, _MAX_TOKENS_BESIDE)
    options = {
        "kind": "text",
        "column": column.name,
        "length": length,
        "vocabulary_size": _vocabulary_size(num_rows),
    }
    if is_bag:
        options |= {"tokenizer": "words", "vocabulary_size": _MAX_WORDS}
    if column.num_missing:
        options["missing"] = "absent"
    return PlannedInput(options, f"text of at most {length} tokens, as most rows have; longer text is cut")


def _num_tokens(num_characters: int, upper: int) -> int:
    return min(max(math.ceil(num_characters / _CHARACTERS_PER_TOKEN), _MIN_TOKENS), upper)


def _vocabulary_size(num_rows: int) -> int:
    return 2_000 if num_rows < 2_000 else 8_000
