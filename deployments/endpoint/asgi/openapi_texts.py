"""The parts of a version's OpenAPI document about requests with texts instead of rows."""

from __future__ import annotations

from typing import Any

from bloomery.deployments.endpoint.asgi.embeddings import ENCODING_FORMATS
from bloomery.deployments.endpoint.asgi.rerank import find_relevant_class
from bloomery.deployments.endpoint.http.responses import JSON
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.features.encoder import Encoder

_TEXT = {"type": "string"}
_COUNT = {"type": "integer", "minimum": 0}
_ERRORS = {
    "400": "the body or a parameter is not valid, or a text breaks the contract",
    "404": "the model does not exist here",
    "413": "the body is too large",
    "503": "too many requests are waiting",
}


def embeddings_operation(version: LoadedVersion) -> dict[str, Any]:
    """`POST /v1/embeddings`, as OpenAI documents it, with the limits of this version."""
    name, width = version.tag.partition(":")[0], version.vector_width
    (column,) = version.encoder.columns
    texts = [example["row"][column] for example in version.examples[:1]]
    request = _object(
        {
            "model": {"enum": [name, version.tag]},
            "input": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]},
            "encoding_format": {"enum": list(ENCODING_FORMATS), "default": "float"},
            "dimensions": {"type": "integer", "minimum": 1, "maximum": width, "default": width},
            "user": {**_TEXT, "description": "ignored"},
        },
        ("model", "input"),
    )
    vector = {"type": "array", "items": {"type": "number"}}
    item = {"object": {"const": "embedding"}, "index": _COUNT, "embedding": {"oneOf": [vector, _TEXT]}}
    usage = {"prompt_tokens": _COUNT, "total_tokens": _COUNT}
    response = {
        "object": {"const": "list"},
        "data": {"type": "array", "items": _object(item)},
        "model": _TEXT,
        "usage": _object(usage),
    }
    example = {"example": {"model": name, "input": texts}} if texts else {}
    return {
        "operationId": "embeddings",
        "summary": "The vector of each text, in order, as OpenAI's clients request it",
        "requestBody": {"required": True, "content": {JSON: {"schema": request, **example}}},
        "responses": {
            "200": {"description": "the vectors", "content": {JSON: {"schema": _object(response)}}},
            **{
                status: {"description": description, "content": {JSON: {"schema": _ERROR}}}
                for status, description in _ERRORS.items()
            },
        },
    }


def rerank_operation(encoder: Encoder, error_responses: dict[str, Any]) -> dict[str, Any]:
    """`POST /rerank`."""
    relevant_class: dict[str, Any] = {}
    needs_class = bool(encoder.classes) and find_relevant_class(encoder) is None
    if encoder.classes:
        names = [str(name) for name in encoder.classes]
        description = "the class of relevant documents, whose probability is the score"
        relevant_class = {"relevant_class": {**_TEXT, "enum": names, "description": description}}
    document = {"oneOf": [_TEXT, _object({"text": _TEXT})]}
    request = _object(
        {
            "query": _TEXT,
            "documents": {"type": "array", "items": document, "minItems": 1},
            "top_n": {"type": "integer", "minimum": 1, "description": "the most results; default: all documents"},
            "return_documents": {"type": "boolean", "default": False},
            **relevant_class,
            "model": {**_TEXT, "description": "ignored"},
        },
        ("query", "documents", *(["relevant_class"] if needs_class else [])),
    )
    result = _object(
        {"index": _COUNT, "relevance_score": {"type": "number"}, "document": _object({"text": _TEXT})},
        ("index", "relevance_score"),
    )
    response = _object({"results": {"type": "array", "items": result}, "model": _TEXT})
    return {
        "operationId": "rerank",
        "summary": "The documents with their relevance to the query, the most relevant one first",
        "requestBody": {"required": True, "content": {JSON: {"schema": request}}},
        "responses": {
            "200": {"description": "the results", "content": {JSON: {"schema": response}}},
            "404": {"description": "the version does not score pairs of texts"},
            **error_responses,
        },
    }


def _object(properties: dict[str, Any], required: tuple[str, ...] | None = None) -> dict[str, Any]:
    """The schema of an object; all properties are required by default."""
    return {"type": "object", "required": list(required or properties), "properties": properties}


_NULLABLE_TEXT = {"type": ["string", "null"]}
_ERROR = _object({"error": _object({"message": _TEXT, "type": _TEXT, "param": _NULLABLE_TEXT, "code": _NULLABLE_TEXT})})
