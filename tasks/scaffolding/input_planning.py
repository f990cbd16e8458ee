"""Which columns a network could learn from, each as which kind of input, and why the others are left out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from bloomery.data_contracts.recipe_sections.data_source import Data
from bloomery.tasks.scaffolding.profiler import ColumnProfile, SourceProfile

_FEW = 50  # categories that get a place each
_FEWEST_VALUES = 20  # a column with fewer could have none in the training part
_MOST_TARGETS = 150_000  # categories by classes by folds; the encoder counts 200,000
_LARGEST_SIDE = 64  # pixels
_MOST_SECONDS = 4.0
_SHORTEST_TEXT = 8  # characters of the longest one: what is shorter is rather a code
_CHARACTERS_OF_TOKEN = 3
_CODES = frozenset({"id", "code", "zip", "zipcode", "type", "class", "category", "flag", "kind", "group"})
_PERSONAL = frozenset(
    {"email", "mail", "phone", "telephone", "mobile", "fax", "ssn", "surname", "firstname", "lastname", "fullname"}
    | {"address", "address1", "address2", "address3", "street", "passport", "iban", "birthday", "birthdate", "dob"}
    | {"phonenumber", "ip"}
)


_IS_TEXT = "it is text that differs in most rows, which would have to stand alone"


class PlannedInput(NamedTuple):
    """An input as it stands in a recipe, and why it does."""

    options: dict[str, Any]
    why: str


class InputPlan(NamedTuple):
    """The inputs of a network, and the columns that it does not read, each with the reason."""

    planned: tuple[PlannedInput, ...]
    left_out: dict[str, str]

    @property
    def columns(self) -> list[str]:
        """The columns that are read, each once."""
        read = (name for one in self.planned for name in one.options.get("columns", [one.options.get("column")]))
        return list(dict.fromkeys(read))

    @property
    def is_flat(self) -> bool:
        return all("columns" in one.options for one in self.planned)


def split_words(name: str) -> list[str]:
    """The words of a column's name, in small letters: `PhoneNumber` is phone and number."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[0-9]+", name)]


def sounds_personal(name: str) -> bool:
    """Whether a name sounds like that of a column about a person."""
    words = split_words(name)
    pairs = {first + second for first, second in pairwise(words)}
    return bool(_PERSONAL & {*words, *pairs, name.lower()}) or words in (["name"], ["user", "name"], ["username"])


def plan_inputs(
    profile: SourceProfile, data: Data, not_read: dict[str, str], num_classes: int, shape: Sequence[int]
) -> InputPlan:
    """The inputs for the columns of `profile`, but those of `not_read`, which have their reasons.

    `shape` has the sizes of an array where the source tells them.
    """
    left_out = dict(not_read)
    flat: dict[str, PlannedInput] = {}
    grouped: dict[str, list[str]] = {}
    for column in (one for one in profile.columns if one.name not in not_read and one.kind != "array"):
        reason = _reason_against(column, data)
        if reason is not None:
            left_out[column.name] = reason
            continue
        found = _flat(column, num_classes)
        same = json.dumps(found.options, sort_keys=True)
        flat.setdefault(same, found)
        grouped.setdefault(same, []).append(column.name)
    planned = tuple(
        PlannedInput({"kind": one.options["kind"], "columns": grouped[same], **_rest(one.options)}, one.why)
        for same, one in flat.items()
    )
    spiked = [name for names in grouped.values() for name in names if _has_spikes(_column(profile, name))]
    if spiked:
        options = {"kind": "category", "columns": spiked, "min_count": _FEWEST_VALUES}
        planned += (PlannedInput(options, "most rows have one value, and others have jumps, so these are read twice"),)
    arrays = [one for one in profile.columns if one.name not in not_read and one.kind == "array"]
    for column in arrays:
        shaped = _shaped(column, profile, data, shape)
        is_taken = isinstance(shaped, PlannedInput) and (not planned or _is_picture(column, data))
        if isinstance(shaped, PlannedInput) and is_taken:
            others = {name: "an array stands alone" for names in grouped.values() for name in names}
            others |= {one.name: "another array is read" for one in arrays if one.name != column.name}
            return InputPlan((shaped,), {**left_out, **others})
        left_out[column.name] = "an array would have to stand alone" if isinstance(shaped, PlannedInput) else shaped
    return InputPlan(planned, left_out) if planned else _text(profile, left_out)


def _text(profile: SourceProfile, left_out: dict[str, str]) -> InputPlan:
    """The longest text, where no other column is left to learn from."""
    texts = [
        column
        for column in profile.columns
        if left_out.get(column.name) == _IS_TEXT and (column.max_length or 0) >= _SHORTEST_TEXT
    ]
    if not texts:
        return InputPlan((), left_out)
    longest = max(texts, key=lambda column: column.max_length or 0)
    length = min(max(math.ceil((longest.max_length or 0) / _CHARACTERS_OF_TOKEN), 16), 256)
    size = 2_000 if profile.num_rows < 2_000 else 8_000
    options = {"kind": "text", "column": longest.name, "length": length, "vocabulary_size": size}
    if longest.num_missing:
        options["missing"] = "empty"
    planned = PlannedInput(options, f"text, in at most {length} pieces; what is longer is cut")
    others = {column.name: "another text is read" for column in texts}
    return InputPlan((planned,), {name: why for name, why in (left_out | others).items() if name != longest.name})


def _rest(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "kind"}


def _reason_against(column: ColumnProfile, data: Data) -> str | None:
    """Why a single-valued column teaches nothing; None where it may."""
    if not column.num_present:
        return "it has no value at all"
    if column.is_constant:
        return "it has one value"
    if column.num_present < _FEWEST_VALUES:
        return f"it has {column.num_present} values only"
    if sounds_personal(column.name):
        return "its name sounds personal: think before a network reads it"
    if column.is_decimal_comma:
        return "its numbers have decimal commas, which are not read: write points at the source"
    if data.kind in ("images", "audio") and column.name in ("path", "sample_rate"):
        return "it describes the file"
    if column.kind == "integer" and column.is_unique and _is_dense(column):
        return "it numbers the rows"
    if column.kind == "string" and column.num_distinct > column.num_present / 2:
        return _IS_TEXT
    return None


def _column(profile: SourceProfile, name: str) -> ColumnProfile:
    return next(column for column in profile.columns if column.name == name)


def _has_spikes(column: ColumnProfile) -> bool:
    """Whether whole numbers have one value in most rows, and enough rows to learn of the others one by one."""
    if column.kind != "integer" or _is_code(column) or column.values is None or column.num_rows < 1_000:
        return False
    return column.num_distinct > 2 and column.values[0][1] > column.num_present / 2


def _is_code(column: ColumnProfile) -> bool:
    return bool(_CODES & set(split_words(column.name))) and column.values is not None


def _is_dense(column: ColumnProfile) -> bool:
    return column.low is not None and column.high is not None and column.high - column.low < 1.2 * column.num_rows


def _flat(column: ColumnProfile, num_classes: int) -> PlannedInput:
    gaps = column.num_missing > 0
    match column.kind:
        case "boolean":
            return PlannedInput(
                {"kind": "boolean"} | ({"missing": False, "indicator": True} if gaps else {}), "true or false"
            )
        case "date" | "timestamp":
            parts = ["month", "day_of_week"] + (["hour"] if column.kind == "timestamp" else [])
            filled = {"missing": "zero", "indicator": True} if gaps else {}
            return PlannedInput(
                {"kind": "date", "parts": parts, "elapsed": True} | filled, "parts of the calendar, and days"
            )
        case "string":
            return _category(column, num_classes)
        case "integer" if _is_code(column):
            return _category(column, num_classes)
    options: dict[str, Any] = {"kind": "number"}
    why = "numbers"
    if gaps:
        options |= {"missing": "median", "indicator": True}
        why += "; where one is missing, the median stands and a 1 beside it"
    if column.low is not None and column.high is not None and column.low >= 0 and column.high >= 1000:
        options |= {"transform": "log"}
        why += " over several sizes, so their logarithms"
    return PlannedInput(options, why)


def _category(column: ColumnProfile, num_classes: int) -> PlannedInput:
    if column.num_distinct <= _FEW:
        rare = {"min_count": 5} if column.num_rows >= 1000 else {}
        return PlannedInput({"kind": "category"} | rare, "a place for each of a few categories")
    if column.num_distinct * num_classes * 5 <= _MOST_TARGETS:
        return PlannedInput(
            {"kind": "category", "encoding": "target"}, "many categories: the share of each class in each"
        )
    return PlannedInput(
        {"kind": "category", "encoding": "hash", "num_buckets": 256}, "too many categories to list: buckets"
    )


def _is_picture(column: ColumnProfile, data: Data) -> bool:
    return data.kind in ("images", "audio", "idx") or _side(column.min_length or 0) is not None


def _side(size: int, channels: int = 1) -> int | None:
    """The side of a square of at least 4 x 4 values in so many channels, if `size` values are one."""
    side = math.isqrt(size // channels)
    return side if side >= 4 and side * side * channels == size else None


def _shaped(column: ColumnProfile, profile: SourceProfile, data: Data, shape: Sequence[int]) -> PlannedInput | str:
    """An array as an image or as sound, or why it is neither."""
    if column.element not in ("integer", "number") or column.num_missing:
        return "it is no array of numbers in every row"
    if data.kind == "audio":
        return _sound(column, profile)
    size = column.min_length or 0
    if size != column.max_length or not size:
        return f"its arrays have {size} to {column.max_length} values, and a network reads one length"
    if math.prod(shape) == size and len(shape) in (2, 3):
        whole, why = ([1, *shape] if len(shape) == 2 else [*shape]), "as the source says"
    elif (side := _side(size)) is not None:
        whole, why = [1, side, side], f"a guess: {size} values make a square"
    elif (side := _side(size, 3)) is not None:
        whole, why = [3, side, side], f"a guess: {size} values make a square in three colours"
    else:
        whole, why = [1, 1, size], f"a guess: {size} values in a row"
    options: dict[str, Any] = {"kind": "image", "column": column.name, "shape": whole}
    if max(whole[1:]) > _LARGEST_SIDE and min(whole[1:]) > 1:
        ratio = _LARGEST_SIDE / max(whole[1:])
        options["resize"] = [max(round(side * ratio), 1) for side in whole[1:]]
        why += ", made smaller for the network"
    return PlannedInput(options, f"channels, height, width: {why}")


def _sound(column: ColumnProfile, profile: SourceProfile) -> PlannedInput:
    rates = profile.column("sample_rate")
    rate = int(rates.values[0][0]) if rates is not None and rates.values else 8000
    wanted, seen = 0.95 * sum(num for _, num in column.lengths), 0
    length = column.max_length or 0
    for size, num in column.lengths:
        seen += num
        if seen >= wanted:
            length = size
            break
    duration = min(max(math.ceil(length / rate * 100) / 100, 0.1), _MOST_SECONDS)
    options = {"kind": "audio", "column": column.name, "sample_rate": rate, "duration_s": duration}
    return PlannedInput(options, "19 of 20 recordings are not longer; the rest is cut")
