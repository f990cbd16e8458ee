"""Plans the inputs of a network: which columns it reads, each as which kind of input, and why it skips the others."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from bloomery.data_contracts.recipe_sections.data_source import DataSource
from bloomery.tasks.scaffolding.planning.array_inputs import plan_array
from bloomery.tasks.scaffolding.planning.input_plans import InputPlan, PlannedInput
from bloomery.tasks.scaffolding.planning.mixed_inputs import is_prose, plan_mixed, plan_text
from bloomery.tasks.scaffolding.profiling.profiler import ColumnProfile, SourceProfile

_MAX_ONE_HOT = 50  # categories that get a place each
_MIN_VALUES = 20  # a column with fewer could have none in the training split
_MAX_TARGET_COUNTS = 150_000  # categories by classes by folds; the encoder counts 200,000
_ID_WORDS = frozenset({"id", "zip", "zipcode", "uuid", "guid"})
_CODE_WORDS = frozenset({"id", "code", "zip", "zipcode", "type", "class", "category", "flag", "kind", "group"})
_ENTITY_WORDS = frozenset(
    {"agent", "airline", "animal", "article", "asset", "bank", "branch", "brand", "building", "campaign"}
    | {"carrier", "channel", "city", "client", "cluster", "country", "county", "customer", "department"}
    | {"dept", "device", "district", "driver", "employee", "equipment", "facility", "factory", "farm", "gate"}
    | {"genre", "hospital", "household", "item", "location", "machine", "merchant", "office", "operator"}
    | {"outlet", "participant", "patient", "person", "plant", "player", "plot", "product", "province"}
    | {"region", "route", "school", "sector", "segment", "seller", "sensor", "shop", "site", "sku", "species"}
    | {"state", "station", "store", "subject", "supplier", "team", "terminal", "turbine", "user", "variety"}
    | {"vehicle", "vendor", "warehouse", "worker", "zone"}
)
_NUMBER_WORDS = frozenset({"id", "no", "nr", "nbr", "num", "number", "code", "index"})
_QUANTITY_WORDS = frozenset(
    {"num", "number", "n", "count", "size", "total", "sum", "mean", "avg", "average", "min", "max", "distance", "per"}
    | {"share", "rate", "ratio", "amount", "days", "hours", "to", "since"}
)
CALENDAR_WORDS = frozenset(
    {"year", "quarter", "month", "week", "day", "weekday", "dow", "dayofweek", "dayofyear", "hour", "minute", "second"}
    | {"mnth", "hr", "yr", "season", "date", "time", "age"}
)
_MIN_ROWS_PER_ENTITY = 2  # on average; rarer numbers teach nothing one by one
_MIN_ENTITIES, _MAX_ENTITIES = 10, 1_000  # values of consecutive numbers
_MIN_ROWS_PER_BALANCED, _MAX_IMBALANCE = 20, 1.1  # rows of each value, and how much more the most frequent one may have
_PERSONAL_WORDS = frozenset(
    {"email", "mail", "phone", "telephone", "mobile", "fax", "ssn", "surname", "firstname", "lastname", "fullname"}
    | {"address", "address1", "address2", "address3", "street", "passport", "iban", "birthday", "birthdate", "dob"}
    | {"phonenumber", "ip"}
)


_FREE_TEXT = (
    "it is text that differs in most rows and has few words: a code or a name, which tells nothing about other rows"
)
_PROSE = "it is read as text"


def split_words(name: str) -> list[str]:
    """Returns the words of a column's name in lower case: `PhoneNumber` has the words phone and number."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+|[0-9]+", name)]


def sounds_personal(name: str) -> bool:
    """Whether the name suggests data about a person."""
    words = split_words(name)
    pairs = {first + second for first, second in pairwise(words)}
    return bool(_PERSONAL_WORDS & {*words, *pairs, name.lower()}) or words in (["name"], ["user", "name"], ["username"])


def plan_inputs(
    profile: SourceProfile, data: DataSource, reserved: dict[str, str], num_classes: int, shape: Sequence[int]
) -> InputPlan:
    """Returns the inputs for the columns of `profile`, without those of `reserved`, which have their reasons.

    `shape` has the sizes of an array where the source states them.
    """
    unused = dict(reserved)
    inputs_by_options: dict[str, PlannedInput] = {}
    columns_by_options: dict[str, list[str]] = {}
    usable = [column for column in profile.columns if column.name not in reserved]
    for column in (column for column in usable if column.logical_type != "array"):
        reason = _reason_against(column, data)
        if reason is not None:
            unused[column.name] = reason
            continue
        tabular = _plan_tabular(column, num_classes)
        options = json.dumps(tabular.options, sort_keys=True)
        inputs_by_options.setdefault(options, tabular)
        columns_by_options.setdefault(options, []).append(column.name)
    inputs = tuple(
        PlannedInput(
            {"kind": tabular.options["kind"], "columns": columns_by_options[options], **_without_kind(tabular.options)},
            tabular.reason,
        )
        for options, tabular in inputs_by_options.items()
    )
    columns_read = [name for names in columns_by_options.values() for name in names]
    spiked_columns = [name for name in columns_read if _has_spikes(_column(profile, name))]
    if spiked_columns:
        category = {"kind": "category", "columns": spiked_columns, "min_count": _MIN_VALUES}
        inputs += (
            PlannedInput(
                category, "most rows have one value and the others vary, so these columns are read as categories too"
            ),
        )
    prose = [column for column in usable if unused.get(column.name) == _PROSE]
    mixed = plan_mixed(profile, data, inputs, prose, unused, shape)
    if mixed is not None:
        return mixed
    texts = [column for column in usable if unused.get(column.name) in (_PROSE, _FREE_TEXT)]
    arrays = [column for column in usable if column.logical_type == "array"]
    for column in arrays:
        array = plan_array(column, profile, data, shape)
        if isinstance(array, PlannedInput):  # beside few columns
            reason = f"the model reads only the array {column.name}; with --drop {column.name} it reads the others"
            skipped = dict.fromkeys(columns_read, reason)
            array_names = [array_column.name for array_column in arrays if array_column.name != column.name]
            skipped |= dict.fromkeys(array_names, "the model reads another array")
            return InputPlan((array,), {**unused, **skipped})
        unused[column.name] = array
    return InputPlan(inputs, unused) if inputs else plan_text(profile, texts, unused)


def _without_kind(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "kind"}


def _reason_against(column: ColumnProfile, data: DataSource) -> str | None:
    """Returns why a column of single values is of no use to a model; None where it may be of use."""
    if not column.num_valid:
        return "it has no values"
    if column.is_constant:
        return "all its values are equal"
    if column.num_valid < _MIN_VALUES:
        return f"it has only {column.num_valid} values"
    if sounds_personal(column.name):
        return "its name suggests personal data: decide whether a model may read it"
    if column.has_decimal_commas:
        return "most of its texts are numbers with decimal commas, but too many are not"
    is_of_file = ("path", "sample_rate") if data.kind in ("images", "audio") else ("sample_rate",)
    if (data.kind in ("images", "audio") or data.has_media) and column.name in is_of_file:
        return "it describes the file"
    if column.names_files:
        return f"it names files, which are not opened: {column.file_problem}"
    if is_row_number(column):
        return "it numbers the rows"
    if is_prose(column):
        return _PROSE
    if column.logical_type == "string" and column.num_distinct > column.num_valid / 2:
        return _FREE_TEXT
    if column.logical_type == "integer" and column.num_distinct > column.num_valid / 2 and is_code(column):
        return "it is a code that differs in most rows"
    return None


def _column(profile: SourceProfile, name: str) -> ColumnProfile:
    return next(column for column in profile.columns if column.name == name)


def _has_spikes(column: ColumnProfile) -> bool:
    """Whether whole numbers have one value in most rows, and enough rows to learn about the others one by one."""
    if column.logical_type != "integer" or is_code(column) or column.value_counts is None or column.num_rows < 1_000:
        return False
    return column.num_distinct > 2 and column.value_counts[0][1] > column.num_valid / 2


def is_code(column: ColumnProfile) -> bool:
    """Whether whole numbers name things and measure nothing: by the column's name, or as often as each other."""
    words = split_words(column.name)
    if _ID_WORDS & set(words) or (_CODE_WORDS & set(words) and column.value_counts is not None):
        return True
    repeats = column.num_distinct <= column.num_valid / _MIN_ROWS_PER_ENTITY
    return repeats and (_names_entities(words) or _is_balanced(column, words))


def _names_entities(words: Sequence[str]) -> bool:
    """Whether a name says what is numbered: `store` and `shop_nr`, but not `num_stores` and `store_size`."""
    stems = [word for word in words if not word.isdigit()]
    while len(stems) > 1 and stems[-1] in _NUMBER_WORDS:
        stems.pop()
    return bool(stems) and stems[-1] in _ENTITY_WORDS and not _QUANTITY_WORDS & set(stems)


def _is_balanced(column: ColumnProfile, words: Sequence[str]) -> bool:
    """Whether consecutive numbers occur almost equally often, as those of shops do with a row for each day."""
    counts = [num for _, num in column.value_counts or ()]
    is_consecutive = column.maximum is not None and column.maximum - (column.minimum or 0) + 1 == len(counts)
    if not is_consecutive or not _MIN_ENTITIES <= len(counts) <= _MAX_ENTITIES or CALENDAR_WORDS & set(words):
        return False
    return min(counts) >= _MIN_ROWS_PER_BALANCED and max(counts) <= _MAX_IMBALANCE * min(counts)


def is_row_number(column: ColumnProfile) -> bool:
    """Whether unique whole numbers count the rows, with few gaps. Years count them too, but mean a time."""
    if CALENDAR_WORDS & set(split_words(column.name)):
        return False
    low, high = column.minimum, column.maximum
    is_dense = low is not None and high is not None and high - low < 1.2 * column.num_rows
    return column.logical_type == "integer" and column.is_unique and is_dense


def _plan_tabular(column: ColumnProfile, num_classes: int) -> PlannedInput:
    has_gaps = column.num_missing > 0
    match column.logical_type:
        case "boolean":
            boolean_options = {"missing": False, "indicator": True} if has_gaps else {}
            return PlannedInput({"kind": "boolean"} | boolean_options, "true or false")
        case "date" | "timestamp":
            parts = ["month", "day_of_week"] + (["hour"] if column.logical_type == "timestamp" else [])
            date_options = {"missing": "zero", "indicator": True} if has_gaps else {}
            return PlannedInput(
                {"kind": "date", "parts": parts, "elapsed": True} | date_options,
                "parts of the calendar, and elapsed days",
            )
        case "string":
            return _plan_category(column, num_classes)
        case "integer" if is_code(column):
            return _plan_category(column, num_classes)
    options: dict[str, Any] = {"kind": "number"}
    reason = "numbers"
    if has_gaps:
        options |= {"missing": "median", "indicator": True}
        reason += "; the median replaces a missing one, and an indicator marks it"
    if column.minimum is not None and column.maximum is not None and column.minimum >= 0 and column.maximum >= 1000:
        options |= {"transform": "log"}
        reason += "; their range is wide, so the model reads logarithms"
    return PlannedInput(options, reason)


def _plan_category(column: ColumnProfile, num_classes: int) -> PlannedInput:
    if column.num_distinct <= _MAX_ONE_HOT:
        rare = {"min_count": 5} if column.num_rows >= 1000 else {}
        noun = "few categories" if column.logical_type != "integer" else "whole numbers that name few things"
        return PlannedInput({"kind": "category"} | rare, f"{noun}: one-hot encoding")
    if column.num_distinct * num_classes * 5 <= _MAX_TARGET_COUNTS:
        return PlannedInput(
            {"kind": "category", "encoding": "target"}, "many categories: each becomes the shares of the classes in it"
        )
    return PlannedInput(
        {"kind": "category", "encoding": "hash", "num_buckets": 256}, "too many categories to list: hashed into buckets"
    )
