"""Requests and conditions for tests."""

from __future__ import annotations

from typing import Any

from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused

PAIR = [
    {"name": "a", "logicalType": "integer"},
    {"name": "b", "logicalType": "number"},
    {"name": "c", "logicalType": "string"},
]


def expression(text: str, **keys: Any) -> dict[str, Any]:
    return {
        "type": "custom",
        "engine": "bloomery",
        "implementation": {"rule": "expression", "expression": text},
        **keys,
    }


def is_accepted(parser: JsonRowParser, row: dict[str, Any]) -> bool:
    try:
        parser.parse_table([row])
    except RowsRefused:
        return False
    return True
