"""Quality checks and a contract document for tests."""

from __future__ import annotations

from typing import Any

NONE = {"mustBe": 0}

DOCUMENT: dict[str, Any] = {
    "apiVersion": "v3.1.0",
    "kind": "DataContract",
    "id": "made-for-a-test",
    "name": "made",
    "version": "1.0.0",
    "status": "active",
    "schema": [
        {
            "name": "trips",
            "properties": [
                {"name": "pickup", "logicalType": "timestamp", "required": True},
                {"name": "fare", "logicalType": "number", "required": True},
            ],
        }
    ],
}


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
