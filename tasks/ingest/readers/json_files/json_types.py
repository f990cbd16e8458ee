"""The types of JSON values, counted over all rows: the Arrow type of each column, and the values in that type."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeAlias

import pyarrow as pa

from bloomery.data_contracts.recipe_sections.data_source import DataSource

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
_NAMES: dict[type, str] = {bool: "boolean", int: "integer", float: "number", str: "text", list: "array", dict: "object"}
_ARROW_TYPES = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "text": pa.string()}
_NUMBER_TEXT = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]{0,17})(\.[0-9]*)?|(\.[0-9]+))([eE][+-]?[0-9]{1,4})?", re.ASCII)
_VALUES_PER_MISFIT = 200  # one value in so many may be of another type than the rest of its column
_FEW_MISFITS = 2  # tolerated in a small source, too
_MAX_TEXTS, _MAX_TEXT_LENGTH = 200, 40  # that are remembered of a column
_MAX_QUOTED = 40  # characters of a value in a message


class Misfit(ValueError):
    """A value that is not of the type of its column."""


class LongInteger(str):
    """The digits of an integer beyond 64 bits, which only a column of text can hold."""


def parse_integer(digits: str) -> int | LongInteger:
    """Returns a whole number; its digits where it does not fit into 64 bits."""
    is_long = len(digits) > 20 or not -(2**63) <= int(digits) < 2**63
    return LongInteger(digits) if is_long else int(digits)


def json_type_name(value: object) -> str:
    """Returns the name of a value's type: `text`, `array`, `null` and so on."""
    return "null" if value is None else "text" if isinstance(value, str) else _NAMES.get(type(value), "object")


class ValueTypes:
    """How many values of which type a column, the fields of its objects and the elements of its arrays have.

    A column has the type of all or nearly all of its values; texts of numbers beside numbers are numbers, and NaN is no
    value beside other types. Where more values are of other types, the column is text, with values as JSON writes them.
    With `has_numbers` texts of numbers are numbers, even alone.
    """

    def __init__(self, *, has_numbers: bool = False) -> None:
        self._has_numbers = has_numbers
        self.counts: Counter[str] = Counter()
        self.texts: Counter[str] = Counter()  # the first short ones that are no numbers
        self.fields: dict[str, ValueTypes] = {}
        self.element: ValueTypes | None = None
        self._num_integer_texts = self._num_fraction_texts = 0

    def add(self, value: JsonValue) -> None:
        if value is None:
            return
        name = json_type_name(value)
        if name == "number" and math.isnan(value):  # type: ignore[arg-type]
            name = "nan"
        self.counts[name] += 1
        if isinstance(value, dict):
            for key, inner in value.items():
                (self.fields.get(key) or self.fields.setdefault(key, ValueTypes())).add(inner)
        elif isinstance(value, list):
            self.element = self.element or ValueTypes()
            for inner in value:
                self.element.add(inner)
        elif isinstance(value, str):
            self._add_text(value)

    def _add_text(self, text: str) -> None:
        match = _NUMBER_TEXT.fullmatch(text) if text[:1] in "+-.0123456789" else None
        if match is None:
            if text in self.texts or (len(self.texts) < _MAX_TEXTS and len(text) <= _MAX_TEXT_LENGTH):
                self.texts[text] += 1
        elif any(match.groups()):
            self._num_fraction_texts += 1
        else:
            self._num_integer_texts += 1

    @property
    def is_mixed(self) -> bool:
        """Whether a value may have to be converted, here or inside."""
        inner = [*self.fields.values(), *([self.element] if self.element else [])]
        kinds = {"number" if name in ("integer", "nan") else name for name in self.counts}
        return len(kinds) > 1 or self._has_numbers or any(types.is_mixed for types in inner)

    def type_name(self, num_missing: int = 0, *, has_numbers: bool = False) -> str:
        """Returns the type of the column, where `num_missing` of its texts mark missing values: `null` without values.

        With `has_numbers`, or where other values are numbers, texts of numbers are numbers.
        """
        counts = Counter({name: num for name, num in self.counts.items() if name != "nan"})
        counts["text"] -= num_missing
        num_numbers = counts.pop("integer", 0) + counts.pop("number", 0)
        reads_texts = num_numbers or self._has_numbers or has_numbers
        num_texts = self._num_integer_texts + self._num_fraction_texts if reads_texts else 0
        fitting = +Counter({"number": num_numbers + num_texts, **counts})  # of equals, the first is chosen
        if not fitting:
            return "number" if self.counts["nan"] else "null"
        name, num = fitting.most_common(1)[0]
        num_values = counts.total() + num_numbers
        if num_values - num > _max_misfits(num_values):
            return "text"
        has_fractions = self.counts["number"] or self.counts["nan"] or (num_texts and self._num_fraction_texts)
        return "integer" if name == "number" and not has_fractions else name

    def arrow_type(self) -> pa.DataType:
        """Returns the type in which the values are stored. Objects without a key, as of `{}`, are null."""
        name = self.type_name()
        if name == "object":
            fields = [(key, types.arrow_type()) for key, types in self.fields.items()]
            return pa.struct(fields) if fields else pa.null()
        if name == "array":
            return pa.list_(self.element.arrow_type() if self.element else pa.null())
        return pa.null() if name == "null" else _ARROW_TYPES[name]


def _max_misfits(num_values: int) -> int:
    return max(num_values // _VALUES_PER_MISFIT, min(num_values // 20, _FEW_MISFITS))


class ColumnTypes:
    """The types of the columns of all rows that are added.

    Columns of `drop` are read as null, and so are the texts that `missing` names by column. Those of `numbers` are
    numbers that are written as texts.
    """

    def __init__(self, data: DataSource) -> None:
        self._dropped = frozenset(data.drop or ())
        source_names = {renamed: name for name, renamed in (data.rename or {}).items()}
        self._markers = {source_names.get(name, name): texts for name, texts in data.missing_by_column.items()}
        self._mixed: frozenset[str] | None = None
        self._numbers = frozenset(data.numbers or ())
        self.columns: dict[str, ValueTypes] = {}
        for name in data.columns or ():
            self._column(name)

    def add(self, row: Mapping[str, JsonValue]) -> None:
        for name, value in row.items():
            self._column(name).add(self._present(name, value))
        self._mixed = None

    def _column(self, name: str) -> ValueTypes:
        types = self.columns.get(name)
        if types is None:
            types = self.columns[name] = ValueTypes(has_numbers=name in self._numbers)
        return types

    def schema(self) -> pa.Schema:
        """Returns a column for each key, in the order of the rows."""
        return pa.schema([(name, types.arrow_type()) for name, types in self.columns.items()])

    def convert(self, row: Mapping[str, Any], schema: pa.Schema) -> Mapping[str, Any]:
        """Returns the row in the types of `schema`, which are those of these columns.

        Raises:
            Misfit: a value is not of the type of its column; the message names both.
        """
        if self._mixed is None:
            mixed = {name for name, types in self.columns.items() if types.is_mixed}
            self._mixed = frozenset(mixed | self._dropped | self._markers.keys())
        if self._mixed.isdisjoint(row):
            return row
        converted = dict(row)
        for name in self._mixed & row.keys():
            try:
                converted[name] = _convert(self._present(name, row[name]), schema.field(name).type)
            except Misfit as misfit:
                raise Misfit(f"column {name}: {misfit}") from None
        return converted

    def _present(self, name: str, value: JsonValue) -> JsonValue:
        is_missing = name in self._dropped or (isinstance(value, str) and value in self._markers.get(name, ()))
        return None if is_missing else value


def build_batch(rows: list[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Returns the rows in the types of `schema`."""
    arrays = [_to_array([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _to_array(values: list[Any], arrow_type: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, arrow_type)
    except pa.ArrowInvalid:  # an integer that a float cannot hold exactly, or an object without keys
        return pa.array([_convert(value, arrow_type) for value in values], arrow_type)


def _convert(value: Any, arrow_type: pa.DataType) -> Any:
    """Returns a value in this type.

    Raises:
        Misfit: it has another type.
    """
    is_nan = isinstance(value, float) and math.isnan(value) and not pa.types.is_floating(arrow_type)
    if value is None or is_nan or value == {} or pa.types.is_null(arrow_type):
        return None
    if pa.types.is_string(arrow_type):
        return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if pa.types.is_list(arrow_type) and isinstance(value, list):
        return [_convert(inner, arrow_type.value_type) for inner in value]
    if pa.types.is_struct(arrow_type) and isinstance(value, dict):
        return {field.name: _convert(value.get(field.name), field.type) for field in arrow_type}
    if pa.types.is_boolean(arrow_type) and isinstance(value, bool):
        return value
    if pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type):
        number = _to_number(value)
        if number is not None and not (isinstance(number, float) and pa.types.is_integer(arrow_type)):
            return float(number) if pa.types.is_floating(arrow_type) else number
    if isinstance(value, LongInteger):
        raise Misfit(f"the integer {value[:_MAX_QUOTED]} does not fit into 64 bits")
    raise Misfit(f"{_quote(value)} is no {_describe_type(arrow_type)}, unlike nearly all other values")


def _to_number(value: Any) -> int | float | None:
    if isinstance(value, str) and not isinstance(value, LongInteger):
        match = _NUMBER_TEXT.fullmatch(value)
        return None if match is None else float(value) if any(match.groups()) else int(value)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _describe_type(arrow_type: pa.DataType) -> str:
    if pa.types.is_integer(arrow_type) or pa.types.is_floating(arrow_type):
        return "number"
    return "boolean" if pa.types.is_boolean(arrow_type) else "array" if pa.types.is_list(arrow_type) else "object"


def _quote(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_QUOTED else f"{text[:_MAX_QUOTED]}…"
