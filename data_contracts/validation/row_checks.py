"""Finds the rows of an Arrow batch that break a rule about single rows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bloomery.data_contracts.errors import ContractBroken, DataUnfit
from bloomery.data_contracts.expressions import parser
from bloomery.data_contracts.odcs.columns.arrow_schema import arrow_schema, is_compatible, value_range
from bloomery.data_contracts.odcs.columns.date_formats import parse_format
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule
from bloomery.data_contracts.validation.casting import cast_column, find_uncastable


class CastBatch(NamedTuple):
    """The raw rows, the same cast to the contract's types, and by column a mask of the values that do not fit."""

    raw: pa.RecordBatch
    rows: pa.RecordBatch
    uncastable: dict[str, pa.BooleanArray]


def cast_batch(raw: pa.RecordBatch, schema: pa.Schema, date_formats: Mapping[str, str] | None = None) -> CastBatch:
    """Casts `raw`, which has the columns of `schema` in any order, to its types.

    `date_formats` says by column how dates and times are written, where they are not in ISO 8601.
    """
    arrays, uncastable = [], {}
    for field in schema:
        values, mask = cast_column(raw.column(field.name), field.type, (date_formats or {}).get(field.name))
        arrays.append(values)
        if mask.true_count:
            uncastable[field.name] = mask
    return CastBatch(raw, pa.RecordBatch.from_arrays(arrays, schema=schema), uncastable)


def require_columns(schema: pa.Schema, contract: Contract, where: str) -> None:
    """Raises ContractBroken unless `schema` has exactly the contract's columns, each of a compatible type.

    Columns of the contract that Bloomery does not read may be there or not. A float is compatible with an integer, and
    so are integers of any width: whether each value fits is checked row by row. Text in place of a number breaks the
    contract as a whole.
    """
    required = arrow_schema(contract.columns)
    known_names = {*required.names, *contract.table.unread_columns}
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    problems = [
        *(f"column {name} occurs twice" for name in repeated),
        *(f"column {name} is missing" for name in required.names if name not in schema.names),
        *(f"column {name} is not in the contract" for name in schema.names if name not in known_names),
        *(
            f"column {name} is {schema.field(name).type}, not {required.field(name).type}"
            for name in required.names
            if schema.names.count(name) == 1
            and not is_compatible(schema.field(name).type, required.field(name).type)
            and not is_written_date(schema.field(name), contract)
        ),
    ]
    if problems:
        renamed = {
            column.physical_name: column.name
            for column in contract.columns
            if column.name not in schema.names and column.physical_name in schema.names
        }
        pairs = ", ".join(f"{physical_name}: {name}" for physical_name, name in renamed.items())
        raise ContractBroken(
            "; ".join(problems),
            required=f"the columns {', '.join(required.names)} of contract {contract.name} {contract.version}",
            where=where,
            remedy=f"the data has physical names: write `rename: {{{pairs}}}` in the recipe's data"
            if renamed
            else "correct the data at its source, or release a new version of the contract",
        )


def is_written_date(field: pa.Field, contract: Contract) -> bool:
    """Whether a column has dates or times in the contract's format: as text, or dates as times at midnight.

    pandas writes dates so, having no type for them. Such a format of a date has hours.
    """
    date_format = contract.date_formats.get(field.name)
    if date_format is None:
        return False
    column = contract.column(field.name)
    is_date = column is not None and column.logical_type == "date"
    is_time = pa.types.is_timestamp(field.type) and is_date and parse_format(date_format).has_time
    return pa.types.is_string(field.type) or is_time


def require_valid_text(rows: pa.RecordBatch, start: int) -> None:
    """Raises DataUnfit if text is not UTF-8, as in a damaged file. `start` is the number of the first row."""
    for field, column in zip(rows.schema, rows.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as failure:
            raise DataUnfit(
                f"column {field.name} is damaged: {failure}",
                required="valid values of the column's type, and text in UTF-8",
                where=f"column {field.name}, one of the rows {start} to {start + rows.num_rows - 1}",
                remedy="write the data again; convert text in another encoding to UTF-8",
            ) from failure


def row_rules(contract: Contract) -> tuple[Rule, ...]:
    """The rules about single rows. The last ones, that each value fits its column's type, follow from the schema."""
    contract_rules = tuple(rule for rule in contract.rules() if rule.is_about_rows)
    return (
        *contract_rules,
        *(rule for field in arrow_schema(contract.columns) if (rule := _type_rule(field)) is not None),
    )


def _type_rule(field: pa.Field) -> Rule | None:
    is_array = pa.types.is_list(field.type)
    kind = field.type.value_type if is_array else field.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (is_number or pa.types.is_temporal(kind) or pa.types.is_boolean(kind)):
        return None
    low, high = value_range(kind) if is_number else (None, None)
    target = f"{field.name}[]" if is_array else field.name
    return Rule(target=target, is_of_items=is_array, kind="fits", low=low, high=high)


def parse_conditions(rules: tuple[Rule, ...], schema: pa.Schema) -> dict[str, parser.Condition]:
    """The parsed expressions of the rules, by text, for all batches."""
    return {
        rule.expression: parser.parse_condition(rule.expression, schema)
        for rule in rules
        if rule.expression is not None
    }


def find_violations(rule: Rule, batch: CastBatch, conditions: dict[str, parser.Condition]) -> pa.BooleanArray:
    """True for every row of `batch` that breaks `rule`. A null breaks only the rule `required`.

    `conditions` are the parsed expressions of the rules.
    """
    if rule.kind == "expression":
        return parser.find_violations(conditions[rule.expression or ""], batch.rows)
    if rule.is_of_items:
        elements = _elements(batch, rule.column)
        return _rows_with(elements, _breaking_elements(rule, batch, elements), batch.rows.num_rows)
    if rule.kind == "fits":
        mask = batch.uncastable.get(rule.target)
        return pa.array(np.zeros(batch.rows.num_rows, dtype=bool)) if mask is None else mask
    return _breaking_values(rule, batch.raw.column(rule.target), _unrounded(batch, rule.target))


def _unrounded(batch: CastBatch, column: str) -> pa.Array:
    """The values of a column as float64 instead of float32, so that limits are compared before rounding."""
    values = batch.rows.column(column)
    if values.type != pa.float32():
        return values
    wide, _ = cast_column(batch.raw.column(column), pa.float64())
    return pc.if_else(pc.is_valid(values), wide, pa.scalar(None, wide.type)) if values.null_count else wide


def describe_values(rule: Rule, batch: CastBatch, rows: np.ndarray) -> pa.StringArray:
    """The value that breaks `rule` in each of `rows`, all of which break it, as text of at most 80 characters."""
    positions = pa.array(rows)
    names = [*rule.columns, *((rule.target,) if rule.kind == "determined" else ())]
    if names:
        parts = [
            pc.binary_join_element_wise(name, _text(batch.rows.column(name).take(positions)), " ") for name in names
        ]
        return _shorten(pc.binary_join_element_wise(*parts, ", "))
    if rule.is_of_items:
        return _shorten(_first_elements(rule, batch, positions))
    values = batch.raw.column(rule.target).take(positions)
    if rule.kind == "num_items":
        return _shorten(pc.binary_join_element_wise(_text(pc.list_value_length(values)), "items", " "))
    return _shorten(_text(values))


def _first_elements(rule: Rule, batch: CastBatch, positions: pa.Array) -> pa.StringArray:
    """The first element that breaks the rule, for each of the rows at `places`."""
    selected = CastBatch(batch.raw.take(positions), batch.rows.take(positions), {})
    elements = _elements(selected, rule.column)
    breaking_places = np.flatnonzero(_breaking_elements(rule, selected, elements).to_numpy(zero_copy_only=False))
    _, first = np.unique(_parents(elements, breaking_places), return_index=True)
    return _text(elements.raw.take(pa.array(breaking_places[first])))


def _text(values: pa.Array) -> pa.StringArray:
    if values.null_count == len(values):
        return pa.array(["null"] * len(values), pa.string())
    if pa.types.is_list(values.type):
        parts = pa.ListArray.from_arrays(values.offsets, _text(values.values))
        elements = pc.binary_join_element_wise("[", pc.binary_join(parts, ", "), "]", "")
        return pc.if_else(pc.is_valid(values), elements, "null")
    return pc.fill_null(values.cast(pa.string()), "null")


def _shorten(texts: pa.StringArray) -> pa.StringArray:
    short = pc.binary_join_element_wise(pc.utf8_slice_codeunits(texts, 0, 77), "...", "")
    return pc.if_else(pc.greater(pc.utf8_length(texts), 80), short, texts)


class _Elements(NamedTuple):
    """The raw elements of an array column, the cast ones, and the end of each row's elements."""

    raw: pa.Array
    values: pa.Array
    ends: np.ndarray


def _elements(batch: CastBatch, column: str) -> _Elements:
    raw, rows = batch.raw.column(column), batch.rows.column(column)
    if not pa.types.is_nested(raw.type):
        raw = rows  # the column has only nulls
    flat = pc.list_flatten(raw)
    kind = rows.type.value_type
    # A number is compared with limits before float32 rounds it.
    values, _ = cast_column(flat, pa.float64() if kind == pa.float32() else kind)
    lengths = pc.fill_null(pc.list_value_length(raw), 0).to_numpy(zero_copy_only=False)
    return _Elements(flat, values, np.cumsum(lengths, dtype=np.int64))


def _parents(elements: _Elements, places: np.ndarray) -> np.ndarray:
    """The row of each of the elements at `positions`."""
    return np.searchsorted(elements.ends, places, side="right")


def _breaking_elements(rule: Rule, batch: CastBatch, elements: _Elements) -> pa.BooleanArray:
    if rule.kind == "fits":
        return find_uncastable(elements.raw, batch.rows.schema.field(rule.column).type.value_type)
    return _breaking_values(rule, elements.raw, elements.values)


def _rows_with(elements: _Elements, mask: pa.BooleanArray, num_rows: int) -> pa.BooleanArray:
    rows = np.zeros(num_rows, dtype=bool)
    if mask.true_count:
        rows[_parents(elements, np.flatnonzero(mask.to_numpy(zero_copy_only=False)))] = True
    return pa.array(rows)


def _breaking_values(rule: Rule, raw: pa.Array, values: pa.Array) -> pa.BooleanArray:
    match rule.kind:
        case "required":
            return pc.is_null(raw) if raw.null_count else pa.array(np.zeros(len(raw), dtype=bool))
        case "between":
            mask = _outside(values, rule)
        case "length":
            mask = _outside(pc.utf8_length(values), rule)
        case "num_items":
            mask = _outside(pc.list_value_length(values), rule)
        case "in_set":
            mask = pc.and_(pc.is_valid(values), pc.invert(pc.is_in(values, _set_of(rule, values.type))))
        case "pattern":
            mask = _unmatched(values, rule.pattern or "")
        case _:
            raise ValueError(f"{rule.kind} is not a rule about one value")
    return pc.fill_null(mask, False) if mask.null_count else mask


def _outside(values: pa.Array, rule: Rule) -> pa.Array:
    """True for each value outside of the rule's limits, which are compared exactly, not in the column's type."""
    if pa.types.is_floating(values.type):
        low, high = (None if bound is None else pa.scalar(float(bound)) for bound in (rule.low, rule.high))
        below = None if low is None else (pc.less_equal if rule.strict_low else pc.less)(values, low)
        above = None if high is None else (pc.greater_equal if rule.strict_high else pc.greater)(values, high)
    else:
        minimum, maximum = value_range(values.type)
        low = minimum if rule.low is None else math.floor(rule.low) + 1 if rule.strict_low else math.ceil(rule.low)
        high = maximum if rule.high is None else math.ceil(rule.high) - 1 if rule.strict_high else math.floor(rule.high)
        if low > maximum or high < minimum:
            return pc.is_valid(values)
        below = None if low <= minimum else pc.less(values, pa.scalar(low, values.type))
        above = None if high >= maximum else pc.greater(values, pa.scalar(high, values.type))
    masks = [mask for mask in (below, above) if mask is not None]
    if not masks:
        return pa.array(np.zeros(len(values), dtype=bool))
    return masks[0] if len(masks) == 1 else pc.or_(*masks)


def _set_of(rule: Rule, kind: pa.DataType) -> pa.Array:
    """The rule's values as an array of the column's type, without those that the type cannot hold."""
    if pa.types.is_integer(kind):
        low, high = value_range(kind)
        return pa.array([int(value) for value in rule.values if value == int(value) and low <= value <= high], kind)
    if pa.types.is_date(kind):
        return pa.array([date.fromisoformat(value) for value in rule.values], kind)
    if pa.types.is_floating(kind):
        numbers = [float(value) for value in rule.values]
        return pa.array(
            [*numbers, *(-number for number in numbers if number == 0)], kind
        )  # Arrow distinguishes -0.0 from 0.0
    return pa.array(rule.values, kind)


def _unmatched(texts: pa.Array, pattern: str) -> pa.Array:
    """True for each text without a match of `pattern`, in Python's syntax. Each distinct text is searched once."""
    encoded = texts.dictionary_encode()
    regex = re.compile(pattern)
    unmatched = pa.array([regex.search(text) is None for text in encoded.dictionary.to_pylist()], pa.bool_())
    return unmatched.take(encoded.indices)
