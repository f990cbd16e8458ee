"""Quality checks and a contract document for tests."""

from __future__ import annotations

from typing import Any

from tests.records import contract_document

NONE = {"mustBe": 0}

DOCUMENT = contract_document(
    {"name": "pickup", "logicalType": "timestamp", "required": True},
    {"name": "fare", "logicalType": "number", "required": True},
    table="trips",
)


def own(rule: str, **keys: Any) -> dict[str, Any]:
    more = {
        key: keys.pop(key)
        for key in ("severity", "unit", *(key for key in list(keys) if key.startswith("mustBe")))
        if key in keys
    }
    return {"type": "custom", "engine": "bloomery", "implementation": {"rule": rule, **keys}, **more}


def library(metric: str, arguments: dict[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {"metric": metric, **({"arguments": arguments} if arguments else {}), **keys}


def sql(query: str, **keys: Any) -> dict[str, Any]:
    return {"type": "sql", "query": query, **keys}
