"""What the endpoint says of itself: the version's card, its OpenAPI document, and a page that shows it."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from bloomery.data_contracts.requests.arrow_rows import MEDIA_TYPE as ARROW
from bloomery.data_contracts.serving.api_keys import Demand
from bloomery.deployments.endpoint.auth.middleware import with_keys
from bloomery.deployments.endpoint.inference import explain
from bloomery.deployments.endpoint.inference.model_version import Version

JSON = "application/json"
HTML = "text/html; charset=utf-8"
_CARD = "card/card.html"  # among a bento's artifacts
# The card's pictures are in it. A version may come from somebody else, so nothing in its card may run or ask.
_QUIET = {"content-security-policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"}
_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
_DOCS = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="page"></div><script src="/docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{url: "/openapi.json", dom_id: "#page", docExpansion: "full", deepLinking: true}})</script>
</body>
</html>
"""


class Page(NamedTuple):
    body: bytes
    media_type: str = JSON
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = MappingProxyType({})


class Pages:
    """The pages of one version, written once."""

    def __init__(self, version: Version, keys: Demand = "off") -> None:
        document = with_keys(openapi(version), keys)
        self._pages = {
            "/": Page(b"", "text/plain", HTTPStatus.TEMPORARY_REDIRECT, {"location": "/docs"}),
            "/info": Page(orjson.dumps(card(version, document))),
            "/openapi.json": Page(orjson.dumps(document)),
            "/docs": Page(_DOCS.format(title=document["info"]["title"]).encode(), HTML),
        }
        if _has_card(version):
            self._pages["/card"] = Page(version.artifacts.joinpath(_CARD).read_bytes(), HTML, headers=_QUIET)

    @staticmethod
    def has(path: str) -> bool:
        return path in ("/", "/info", "/card", "/openapi.json", "/docs") or path.removeprefix("/docs/") in _ASSETS

    def page(self, path: str) -> Page | None:
        """None where there is none."""
        name = path.removeprefix("/docs/")
        if name != path and name in _ASSETS:
            return _asset(name)
        return self._pages.get(path)


def _asset(name: str) -> Page:
    """One of the files of Swagger's page, which come with BentoML."""
    file = resources.files("bentoml").joinpath("_internal", "server", "static_content", name)
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Page(file.read_bytes(), media_type, headers={"cache-control": "max-age=86400"})


def _has_card(version: Version) -> bool:
    """A version that was packaged before there were any has none."""
    return _CARD in version.manifest["files"]


def card(version: Version, document: dict[str, Any]) -> dict[str, Any]:
    """Where the version comes from, what it was measured at, and what it takes."""
    manifest, contract = version.manifest, version.contract
    return {
        "model": version.tag,
        "task": version.encoder.features.task,
        "purpose": contract.description.get("purpose", ""),
        "contract": {"name": contract.name, "version": contract.version},
        "candidate": manifest["candidate"],
        "test_score": manifest["test_score"],
        "lineage": manifest["parents"],
        "files": manifest["files"],
        "row": document["components"]["schemas"]["Row"],
        "example": version.examples[0] if version.examples else None,
    }


def openapi(version: Version) -> dict[str, Any]:
    """The OpenAPI document of the version's own contract."""
    rows = [one["row"] for one in version.examples[:2]]
    answer = {"predictions": [one["prediction"] for one in version.examples[:2]], "model": version.tag}
    refusal = {"application/json": {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    stream = {"schema": {"type": "string", "contentMediaType": ARROW}}
    refused = {
        "400": "the body cannot be read",
        "405": "another method than POST",
        "408": "the body did not come",
        "413": "the body is too long, or has too many rows",
        "415": "another content type",
        "422": "a row breaks the contract: column, value and rule",
        "503": "more requests wait than can be answered soon",
    }
    refusals = {status: {"description": why, "content": refusal} for status, why in refused.items()}
    contents = {
        JSON: {
            "schema": {"$ref": "#/components/schemas/Request"},
            **({"example": {"rows": rows}} if rows else {}),
        },
        ARROW: stream,
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": version.contract.name,
            "version": version.tag,
            "description": version.contract.description.get("purpose", ""),
        },
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "A prediction for each row, in order",
                    "requestBody": {"required": True, "content": contents},
                    "responses": {
                        "200": {
                            "description": "the predictions",
                            "headers": {
                                "x-model-version": {"schema": {"type": "string"}},
                                "x-request-id": {"schema": {"type": "string"}},
                            },
                            "content": {
                                JSON: {
                                    "schema": {"$ref": "#/components/schemas/Predictions"},
                                    **({"example": answer} if rows else {}),
                                },
                                ARROW: stream,
                            },
                        },
                        **refusals,
                    },
                }
            },
            "/explain": explain.path_of(version, refusals, contents),
            **{
                path: {"get": {"summary": summary, "responses": {"200": {"description": "as said"}}}}
                for path, summary in (
                    ("/info", "The version's card: lineage, contract, figures, an example"),
                    *([("/card", "The model card, for people: HTML")] if _has_card(version) else []),
                    ("/livez", "Whether the process lives"),
                    ("/readyz", "Whether it answers"),
                    ("/metrics", "Figures for Prometheus"),
                )
            },
        },
        "components": {"schemas": _schemas(version)},
    }


def _schemas(version: Version) -> dict[str, Any]:
    if version.is_regression:
        prediction: dict[str, Any] = {
            "type": "object",
            "required": ["value"],
            "properties": {"value": {"type": "number"}},
        }
    else:
        share = {"type": "number", "minimum": 0, "maximum": 1}
        prediction = {
            "type": "object",
            "required": ["label", "probabilities"],
            "properties": {
                "label": {"enum": list(version.encoder.classes)},
                "probabilities": {"type": "object", "additionalProperties": share},
            },
        }
    text = {"type": "string"}
    problem = {"row": {"type": ["integer", "string"]}, "column": text, "found": text, "rule": text}
    return {
        "Row": version.check.json_schema(),
        "Request": {
            "type": "object",
            "required": ["rows"],
            "additionalProperties": False,
            "properties": {"rows": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Row"}}},
        },
        "Prediction": prediction,
        "Predictions": {
            "type": "object",
            "required": ["predictions", "model"],
            "properties": {
                "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
                "model": text,
            },
        },
        **explain.schemas_of(version),
        "Refusal": {
            "type": "object",
            "required": ["error", "problems"],
            "properties": {
                "error": text,
                "problems": {"type": "array", "items": {"type": "object", "properties": problem}},
            },
        },
    }
