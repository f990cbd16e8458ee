"""Pages about the served version: its facts as JSON, its model card, its OpenAPI document and Swagger UI for it."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jinja2
import orjson

from bloomery.data_contracts.serving.api_keys import KeyPolicy
from bloomery.deployments.endpoint.asgi.openapi import openapi_document
from bloomery.deployments.endpoint.http.responses import JSON
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion

HTML = "text/html; charset=utf-8"
_CARD = "card/card.html"  # among a bento's artifacts
# A version may come from a third party, so its card may neither run scripts nor load anything; its plots are inline.
_CARD_HEADERS = {"content-security-policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; sandbox"}
_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")
_TEMPLATE = Path(__file__).with_name("documentation.html.jinja")


class Page(NamedTuple):
    body: bytes
    media_type: str = JSON
    status: HTTPStatus = HTTPStatus.OK
    headers: Mapping[str, str] = MappingProxyType({})


class DocumentationPages:
    """The pages of one version, rendered once."""

    def __init__(self, version: LoadedVersion, key_policy: KeyPolicy = "off") -> None:
        has_card = _has_card(version)
        document = openapi_document(version, key_policy, has_card=has_card)
        self._pages = {
            "/": Page(b"", "text/plain", HTTPStatus.TEMPORARY_REDIRECT, {"location": "/docs"}),
            "/info": Page(orjson.dumps(version_info(version, document))),
            "/openapi.json": Page(orjson.dumps(document)),
            "/docs": Page(_render_swagger_ui(document["info"]["title"]), HTML),
        }
        if has_card:
            self._pages["/card"] = Page(version.artifacts.joinpath(_CARD).read_bytes(), HTML, headers=_CARD_HEADERS)

    @staticmethod
    def has(path: str) -> bool:
        return path in ("/", "/info", "/card", "/openapi.json", "/docs") or path.removeprefix("/docs/") in _ASSETS

    def page(self, path: str) -> Page | None:
        """Returns the page at `path`, or None if there is none."""
        name = path.removeprefix("/docs/")
        if name != path and name in _ASSETS:
            return _read_asset(name)
        return self._pages.get(path)


def _render_swagger_ui(title: str) -> bytes:
    template = jinja2.Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(title=title).encode()


def _read_asset(name: str) -> Page:
    """A file of Swagger UI, which BentoML includes."""
    file = resources.files("bentoml").joinpath("_internal", "server", "static_content", name)
    media_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return Page(file.read_bytes(), media_type, headers={"cache-control": "max-age=86400"})


def _has_card(version: LoadedVersion) -> bool:
    """False for versions packaged before model cards existed."""
    return _CARD in version.manifest["files"]


def version_info(version: LoadedVersion, document: dict[str, Any]) -> dict[str, Any]:
    """The document of `/info`: lineage, contract, score on held-out rows, and the schema of a row."""
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
