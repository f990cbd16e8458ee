"""The contract of an endpoint whose model reads windows of a time series."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bloomery.data_contracts.expressions.sql import parse_sql
from bloomery.data_contracts.expressions.table_queries import TABLE_PLACEHOLDER
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.odcs.rules import Rule

# Keys of a column that move to the items of its array.
_OF_ITEMS = ("logicalType", "physicalType", "logicalTypeOptions")
# Keys that apply to single values alone.
_OF_ONE = ("unique", "primaryKey", "primaryKeyPosition", "quality", "examples")


def with_windows(contract: Contract, lengths: Mapping[str, int]) -> Contract:
    """`contract` with each column of `lengths` as an array of exactly so many values.

    Every value keeps the type and the limits of the column, and may be null if the column may. Rules that read such a
    column as a single value are left out: the column's own quality checks, and every other check that names it. Without
    `lengths` nothing changes.
    """
    if not lengths:
        return contract
    document = contract.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    table = document["schema"][0]
    _drop_checks(table, contract, lengths)
    table["properties"] = [
        _windows(stated, column.is_required, lengths[column.name]) if column.name in lengths else stated
        for column, stated in zip(contract.columns, table["properties"], strict=True)
    ]
    return Contract.model_validate(document)


def _windows(column: dict[str, Any], is_required: bool, length: int) -> dict[str, Any]:
    """A column of single values as a column of arrays of them, oldest first."""
    items = {**{name: column[name] for name in _OF_ITEMS if name in column}, "required": is_required}
    custom = [entry for entry in column.get("customProperties", ()) if entry["property"] != "unknownCategory"]
    kept = {name: value for name, value in column.items() if name not in (*_OF_ITEMS, *_OF_ONE, "customProperties")}
    limits = {"minItems": length, "maxItems": length}
    return {
        **kept,
        **({"customProperties": custom} if custom else {}),
        "logicalType": "array",
        "required": True,
        "logicalTypeOptions": limits,
        "items": items,
    }


def _drop_checks(table: dict[str, Any], contract: Contract, lengths: Mapping[str, int]) -> None:
    """Take the quality checks out of `table` whose rules read a column of `lengths`."""
    gone = {place for rule, place in contract.table.located_rules() if "quality" in place and _reads(rule, lengths)}
    owners = [((), table), *((("properties", at), column) for at, column in enumerate(table["properties"]))]
    for owner, part in owners:
        checks = part.get("quality", [])
        part["quality"] = [check for at, check in enumerate(checks) if (*owner, "quality", at) not in gone]


def _reads(rule: Rule, lengths: Mapping[str, int]) -> bool:
    if rule.kind != "query":
        return not lengths.keys().isdisjoint((rule.column, *rule.columns))
    from sqlglot import exp

    named = {
        column.name.lower()
        for column in parse_sql((rule.expression or "").replace(TABLE_PLACEHOLDER, "it")).find_all(exp.Column)
    }
    return not named.isdisjoint(name.lower() for name in lengths)
