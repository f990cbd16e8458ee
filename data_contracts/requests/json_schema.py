"""The rows of a request as a JSON Schema, for authors of clients: types, limits, allowed values and descriptions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bloomery.data_contracts.odcs.columns.column import Column
from bloomery.data_contracts.odcs.columns.typed_elements import TypedElement
from bloomery.data_contracts.odcs.rules import Rule, integer_limits

_FORMATS = {"date": {"type": "string", "format": "date"}, "timestamp": {"type": "string", "format": "date-time"}}


def row_json_schema(columns: Sequence[Column], rules: Sequence[Rule], title: str) -> dict[str, Any]:
    """An object with a property for each column. Conditions, which JSON Schema cannot express, are in the description.

    Patterns are Python's regular expressions, although JSON Schema expects JavaScript's.
    """
    properties = {column.name: _column(column, rules) for column in columns}
    conditions = [rule.sentence for rule in rules if rule.kind == "expression"]
    return {
        "title": title,
        "type": "object",
        "properties": properties,
        "required": [column.name for column in columns if column.is_required],
        "additionalProperties": False,
        **({"description": f"Each row {'; '.join(conditions)}."} if conditions else {}),
    }


def _column(column: Column, rules: Sequence[Rule]) -> dict[str, Any]:
    column_rules = [rule for rule in rules if rule.target == column.name and not rule.is_of_items]
    if column.items is None:
        schema = _value(column, column_rules)
    else:
        item_rules = [rule for rule in rules if rule.column == column.name and rule.is_of_items]
        items = _value(column.items, item_rules)
        schema = {"type": "array", "items": items if column.items.required else _or_null(items)}
        for rule in column_rules:
            if rule.kind == "num_items":
                schema |= _limits(rule, "minItems", "maxItems")
    if column.description:
        schema["description"] = column.description
    return schema if column.is_required else _or_null(schema)


def _value(item: TypedElement, rules: Sequence[Rule]) -> dict[str, Any]:
    if item.logical_type == "integer":
        lower, upper = integer_limits(tuple(rule for rule in rules if rule.kind == "between"), item.arrow_type)
        schema: dict[str, Any] = {"type": "integer", "minimum": lower, "maximum": upper}
    elif item.date_format is not None:
        schema = {"type": "string", "description": f"written as {item.date_format}"}
    else:
        schema = dict(_FORMATS.get(item.logical_type, {"type": item.logical_type}))
    for rule in rules:
        match rule.kind:
            case "between" if item.logical_type == "number":
                schema |= _limits(
                    rule,
                    "exclusiveMinimum" if rule.strict_low else "minimum",
                    "exclusiveMaximum" if rule.strict_high else "maximum",
                )
            case "length":
                schema |= _limits(rule, "minLength", "maxLength")
            case "pattern":
                schema["pattern"] = rule.pattern
            case "in_set":
                schema["enum"] = list(rule.values)
    return schema


def _limits(rule: Rule, low: str, high: str) -> dict[str, Any]:
    return {name: limit for name, limit in ((low, rule.low), (high, rule.high)) if limit is not None}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
