"""The rows of a request as a JSON Schema, for whoever writes a client: types, limits, known values and examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bloomery.data_contracts.odcs.columns import Column, TypedElement
from bloomery.data_contracts.odcs.rules import Rule, integer_limits

_FORMATS = {"date": {"type": "string", "format": "date"}, "timestamp": {"type": "string", "format": "date-time"}}


def row_json_schema(columns: Sequence[Column], rules: Sequence[Rule], title: str) -> dict[str, Any]:
    """An object with a property for each column. What JSON Schema cannot say is in the descriptions.

    A pattern is one of Python's regular expressions, which a reader of the schema takes for JavaScript's.
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
    own = [rule for rule in rules if rule.target == column.name]
    if column.items is None:
        schema = _value(column, own)
    else:
        inner = [rule for rule in rules if rule.target == f"{column.name}[]"]
        items = _value(column.items, inner)
        schema = {"type": "array", "items": items if column.items.required else _or_null(items)}
        for rule in own:
            if rule.kind == "num_items":
                schema |= _named(rule, "minItems", "maxItems")
    if column.description:
        schema["description"] = column.description
    return schema if column.is_required else _or_null(schema)


def _value(item: TypedElement, rules: Sequence[Rule]) -> dict[str, Any]:
    if item.logical_type == "integer":
        least, most = integer_limits(tuple(rule for rule in rules if rule.kind == "between"), item.arrow_type)
        schema: dict[str, Any] = {"type": "integer", "minimum": least, "maximum": most}
    else:
        schema = dict(_FORMATS.get(item.logical_type, {"type": item.logical_type}))
    for rule in rules:
        match rule.kind:
            case "between" if item.logical_type == "number":
                schema |= _named(
                    rule,
                    "exclusiveMinimum" if rule.strict_low else "minimum",
                    "exclusiveMaximum" if rule.strict_high else "maximum",
                )
            case "length":
                schema |= _named(rule, "minLength", "maxLength")
            case "pattern":
                schema["pattern"] = rule.pattern
            case "in_set":
                schema["enum"] = list(rule.values)
    return schema


def _named(rule: Rule, low: str, high: str) -> dict[str, Any]:
    return {name: limit for name, limit in ((low, rule.low), (high, rule.high)) if limit is not None}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}
