"""The contract of an endpoint whose model reads windows of a time series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bloomery.data_contracts.expressions.sql import parse_sql
from bloomery.data_contracts.expressions.table_queries import TABLE_PLACEHOLDER
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule

# Keys of a column that move to the items of its array.
_ITEM_KEYS = ("logicalType", "physicalType", "logicalTypeOptions")
# Keys that apply only to single values.
_SCALAR_KEYS = ("unique", "primaryKey", "primaryKeyPosition", "quality", "examples")


def with_windows(contract: Contract, lengths: Mapping[str, int]) -> Contract:
    """`contract` with each column of `lengths` as an array of that length.

    Every value keeps the type and limits of the column, and may be null if the column may. Quality checks that read
    such a column are left out, since they are about single values. Without `lengths` nothing changes.
    """
    if not lengths:
        return contract
    document = contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    table = document["schema"][0]
    _drop_checks(table, contract, lengths)
    table["properties"] = [
        _windows(properties, column.is_required, lengths[column.name]) if column.name in lengths else properties
        for column, properties in zip(contract.columns, table["properties"], strict=True)
    ]
    return Contract.model_validate(document)


def _windows(column: dict[str, Any], is_required: bool, length: int) -> dict[str, Any]:
    """The column as an array of its values, oldest first."""
    items = {**{name: column[name] for name in _ITEM_KEYS if name in column}, "required": is_required}
    custom = [entry for entry in column.get("customProperties", ()) if entry["property"] != "unknownCategory"]
    properties = {
        name: value for name, value in column.items() if name not in (*_ITEM_KEYS, *_SCALAR_KEYS, "customProperties")
    }
    limits = {"minItems": length, "maxItems": length}
    return {
        **properties,
        **({"customProperties": custom} if custom else {}),
        "logicalType": "array",
        "required": True,
        "logicalTypeOptions": limits,
        "items": items,
    }


def _drop_checks(table: dict[str, Any], contract: Contract, lengths: Mapping[str, int]) -> None:
    """Removes from `table` the quality checks that read a column of `lengths`."""
    dropped = {
        location for rule, location in contract.table.located_rules() if "quality" in location and _reads(rule, lengths)
    }
    owners = [((), table), *((("properties", at), column) for at, column in enumerate(table["properties"]))]
    for owner, part in owners:
        checks = part.get("quality", [])
        part["quality"] = [check for at, check in enumerate(checks) if (*owner, "quality", at) not in dropped]


def _reads(rule: Rule, lengths: Mapping[str, int]) -> bool:
    if rule.kind != "query":
        return not lengths.keys().isdisjoint((rule.column, *rule.columns))
    from sqlglot import exp

    columns = {
        column.name.lower()
        for column in parse_sql((rule.expression or "").replace(TABLE_PLACEHOLDER, "it")).find_all(exp.Column)
    }
    return not columns.isdisjoint(name.lower() for name in lengths)
