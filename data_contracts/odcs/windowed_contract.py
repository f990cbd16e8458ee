"""The contract of an endpoint whose model reads windows of a time series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bloomery.data_contracts.expressions.sql import parse_sql
from bloomery.data_contracts.expressions.table_queries import TABLE_PLACEHOLDER
from bloomery.data_contracts.odcs.columns.column import Column
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
    columns = {column.name: column for column in contract.columns if column.name in lengths}
    table["properties"] = [
        _windows(properties, columns[properties["name"]], lengths) if properties["name"] in columns else properties
        for properties in table["properties"]
    ]
    return Contract.model_validate(document)


def _windows(properties: dict[str, Any], column: Column, lengths: Mapping[str, int]) -> dict[str, Any]:
    """The column as an array of its values, oldest first."""
    types = {"logicalType": column.logical_type, "physicalType": column.arrow_type}
    items = {**{name: properties[name] for name in _ITEM_KEYS if name in properties}, "required": column.is_required}
    items.update({name: value for name, value in types.items() if name in items or name == "logicalType"})
    custom = [entry for entry in properties.get("customProperties", ()) if entry["property"] != "unknownCategory"]
    properties = {
        name: value
        for name, value in properties.items()
        if name not in (*_ITEM_KEYS, *_SCALAR_KEYS, "customProperties")
    }
    limits = {"minItems": lengths[column.name], "maxItems": lengths[column.name]}
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
        location
        for rule, location, _ in contract.table.candidate_rules()
        if "quality" in location and _reads(rule, lengths)
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
