"""The OpenAPI document of a version, from its contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bloomery.data_contracts.requests.arrow_rows import ARROW_MEDIA_TYPE as ARROW
from bloomery.data_contracts.serving.api_keys import KeyPolicy
from bloomery.deployments.endpoint.asgi.embeddings import EMBEDDINGS_PATH
from bloomery.deployments.endpoint.asgi.media_rows import BASE64, ROWS_PART
from bloomery.deployments.endpoint.asgi.multipart import MULTIPART
from bloomery.deployments.endpoint.asgi.openapi_texts import embeddings_operation, rerank_operation
from bloomery.deployments.endpoint.asgi.rerank import RERANK_PATH, find_pair
from bloomery.deployments.endpoint.auth.middleware import PUBLIC_PATHS
from bloomery.deployments.endpoint.http.responses import JSON
from bloomery.deployments.endpoint.inference.explain import LABEL_PARAMETER
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.media.config import MediaColumn

_NUM_EXAMPLES = 2
_TEXT = {"type": "string"}
_NUMBER = {"type": "number"}
_ERRORS = {
    "400": "the body cannot be read",
    "405": "a method other than POST",
    "408": "the body was not complete in time",
    "413": "the body is too large, has too many rows, or files with too many pixels or samples",
    "415": "an unsupported content type",
    "422": "a row violates the contract: column, value and rule",
    "503": "too many requests are waiting",
}
_KEY_ERRORS = {
    "401": ("no key, or an unknown one", {"www-authenticate": _TEXT}),
    "403": ("the key was revoked", {}),
    "429": ("more requests than the key's rate allows", {"retry-after": {"type": "integer"}}),
}


def openapi_document(version: LoadedVersion, key_policy: KeyPolicy, *, has_card: bool) -> dict[str, Any]:
    """Returns an OpenAPI 3.1 document, with the security schemes of API keys unless they are off."""
    error_responses = {
        status: {"description": description, "content": _json_content(_ref("Error"))}
        for status, description in _ERRORS.items()
    }
    pages = {
        "/info": "Facts about the version: lineage, contract, scores, an example",
        **({"/card": "The model card, an HTML page"} if has_card else {}),
        "/livez": "Whether the process is alive",
        "/readyz": "Whether the endpoint accepts requests",
        "/metrics": "Metrics for Prometheus",
    }
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": version.contract.name,
            "version": version.tag,
            "description": version.contract.description.get("purpose", ""),
        },
        "paths": {
            "/predict": {"post": _predict_operation(version, error_responses)},
            **({EMBEDDINGS_PATH: {"post": embeddings_operation(version)}} if version.is_embedding else {}),
            **(
                {}
                if version.is_embedding or version.is_tagging
                else {"/explain": {"post": _explain_operation(version, error_responses)}}
            ),
            **(
                {}
                if find_pair(version.encoder) is None
                else {RERANK_PATH: {"post": rerank_operation(version.encoder, error_responses)}}
            ),
            **{
                path: {"get": {"summary": summary, "responses": {"200": {"description": summary}}}}
                for path, summary in pages.items()
            },
        },
        "components": {"schemas": _schemas(version)},
    }
    if key_policy != "off":
        _add_security(document, is_required_on_loopback=key_policy == "required")
    return document


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _json_content(schema: dict[str, Any]) -> dict[str, Any]:
    return {JSON: {"schema": schema}}


def _arrow_stream() -> dict[str, Any]:
    return {"schema": {**_TEXT, "contentMediaType": ARROW}}


def _request_body(version: LoadedVersion) -> dict[str, Any]:
    rows = [example["row"] for example in version.examples[:_NUM_EXAMPLES]]
    json_body = {"schema": _ref("Request"), **({"example": {"rows": rows}} if rows else {})}
    content = {JSON: json_body, ARROW: _arrow_stream()}
    if version.media:
        content[MULTIPART] = {"schema": _ref("Form")}
    return {"required": True, "content": content}


def _form_schema(media: Sequence[MediaColumn]) -> dict[str, Any]:
    """Returns the schema of a form with a file for each row."""
    files = {
        column.column: {
            "type": "array",
            "minItems": 1,
            "items": {**_TEXT, "contentMediaType": _media_type(column)},
        }
        for column in media
    }
    others = {"type": "array", "items": {"type": "object"}, "description": "the other columns of each row, if any"}
    return {
        "type": "object",
        "required": [media[0].column] if len(media) == 1 else [],
        "additionalProperties": False,
        "properties": {**files, ROWS_PART: others},
        "description": "A file for each row, in the field with the column's name, which may occur several times.",
    }


def _row_schema(version: LoadedVersion) -> dict[str, Any]:
    """Returns the schema of a row; a column of files may have an array or a file in base64."""
    schema = version.row_check.json_schema()
    properties = schema["properties"]
    for media in version.media:
        text = {**_TEXT, "contentEncoding": "base64", "contentMediaType": _media_type(media)}
        file = {**_object({BASE64: text}), "additionalProperties": False}
        properties[media.column] = {"anyOf": [properties[media.column], file]}
    return schema


def _media_type(media: MediaColumn) -> str:
    return "image/*" if media.decoding.kind == "image" else "audio/wav"


def _predict_operation(version: LoadedVersion, error_responses: dict[str, Any]) -> dict[str, Any]:
    predictions = [example["prediction"] for example in version.examples[:_NUM_EXAMPLES]]
    example = {"example": {"predictions": predictions, "model": version.tag}} if predictions else {}
    return {
        "operationId": "predict",
        "summary": "A prediction for each row, in order",
        "requestBody": _request_body(version),
        "responses": {
            "200": {
                "description": "the predictions",
                "headers": {"x-model-version": {"schema": _TEXT}, "x-request-id": {"schema": _TEXT}},
                "content": {JSON: {"schema": _ref("Predictions"), **example}, ARROW: _arrow_stream()},
            },
            **error_responses,
        },
    }


def _explain_operation(version: LoadedVersion, error_responses: dict[str, Any]) -> dict[str, Any]:
    label = {
        "name": LABEL_PARAMETER,
        "in": "query",
        "description": "the class whose probability is explained; default: the most probable one",
        "schema": {"enum": [str(name) for name in version.encoder.classes]},
    }
    if version.output_names:
        label["description"] = "the label whose value or predicted class is explained; default: the first one"
        label["schema"] = {"enum": version.output_names}
    return {
        "operationId": "explain",
        "summary": "The contribution of each column to the prediction of each row, in order",
        "description": "Shapley values against held-out rows: base value and contributions add up to the output.",
        **({} if version.is_regression else {"parameters": [label]}),
        "requestBody": _request_body(version),
        "responses": {
            "200": {"description": "the explanations", "content": _json_content(_ref("Explanations"))},
            **error_responses,
            "501": {**error_responses["503"], "description": "rows of this version cannot be explained"},
        },
    }


def _schemas(version: LoadedVersion) -> dict[str, Any]:
    problem = {"row": {"type": ["integer", "string"]}, "column": _TEXT, "found": _TEXT, "rule": _TEXT}
    return {
        "Row": _row_schema(version),
        **({"Form": _form_schema(version.media)} if version.media else {}),
        "Request": {
            "type": "object",
            "required": ["rows"],
            "additionalProperties": False,
            "properties": {"rows": {"type": "array", "minItems": 1, "items": _ref("Row")}},
        },
        "Prediction": _prediction_schema(version),
        "Predictions": _object({"predictions": {"type": "array", "items": _ref("Prediction")}, "model": _TEXT}),
        "Explanation": _explanation_schema(version),
        "Explanations": _object({"explanations": {"type": "array", "items": _ref("Explanation")}, "model": _TEXT}),
        "Error": _object(
            {"error": _TEXT, "problems": {"type": "array", "items": {"type": "object", "properties": problem}}}
        ),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    """Returns the schema of an object with exactly these required properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _prediction_schema(version: LoadedVersion) -> dict[str, Any]:
    if version.is_regression:
        if version.half_width is None:
            return _object({"value": _NUMBER})
        level = version.manifest["interval"]["level"]
        limit = {
            **_NUMBER,
            "description": f"the interval contains {level:.0%} of the true values",
        }
        return _object({"value": _NUMBER, "lower": limit, "upper": limit})
    if version.encoder.class_outputs:
        outputs = version.encoder.class_outputs
        shares = {"type": "object", "additionalProperties": {**_NUMBER, "minimum": 0, "maximum": 1}}
        return _object(
            {
                "classes": _object({output.name: {"enum": list(output.classes)} for output in outputs}),
                "probabilities": _object({output.name: shares for output in outputs}),
            }
        )
    if version.output_names:
        return _object({"values": _object(dict.fromkeys(version.output_names, _NUMBER))})
    if version.is_embedding:
        return _object({"embedding": {"type": "array", "items": _NUMBER}})
    if version.is_tagging:
        return _tagged_words_schema(version)
    probability = {**_NUMBER, "minimum": 0, "maximum": 1}
    label: dict[str, Any] = {"enum": list(version.encoder.classes)}
    labels = {"type": "array", "items": label, "description": "the labels of a probability of at least 0.5"}
    return _object(
        {
            **({"labels": labels} if version.is_multilabel else {"label": label}),
            "probabilities": {"type": "object", "additionalProperties": probability},
        }
    )


def _tagged_words_schema(version: LoadedVersion) -> dict[str, Any]:
    position = {"type": "integer", "minimum": 0}
    entity = _object({"text": _TEXT, "type": _TEXT, "start": position, "end": position})
    share = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
    return _object(
        {
            "tags": {
                "type": "array",
                "items": {"enum": [*version.encoder.classes, None]},
                "description": "the tag of each word; null for words that are cut off",
            },
            "probabilities": {"type": "array", "items": share, "description": "of the tag of each word"},
            "entities": {
                "type": "array",
                "items": entity,
                "description": "the words from `start` to before `end`, joined by blanks",
            },
            "unread_words": {**position, "description": "the number of words at the end that are cut off"},
        }
    )


def _explanation_schema(version: LoadedVersion) -> dict[str, Any]:
    required = {
        **({} if version.is_regression else {"label": {"enum": [*version.output_names, *version.encoder.classes]}}),
        "output": {**_NUMBER, "description": "what /predict returns: a probability, or a value"},
        "base_value": {**_NUMBER, "description": "the mean output if no column of the row is known"},
        "contributions": _object(dict.fromkeys(version.encoder.columns, _NUMBER)),
        "is_exact": {"type": "boolean", "description": "false if only a sample of the column orders was evaluated"},
    }
    regions = {
        "type": "array",
        "description": "parts of a column: rows and columns of pixels, bands and seconds, steps, or text",
        "items": {"type": "object", "required": ["contribution"], "properties": {"contribution": _NUMBER}},
    }
    return {**_object(required), "properties": {**required, "regions": regions}}


def _add_security(document: dict[str, Any], *, is_required_on_loopback: bool) -> None:
    """Adds the security schemes of API keys, and the errors of requests without a valid key."""
    schemes = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "A key created with `bloomery key create`"},
        "header": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same key"},
    }
    alternatives: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    if not is_required_on_loopback:
        alternatives.append({})  # no key
    key_errors = {
        status: {
            "description": description,
            "content": _json_content(_ref("Error")),
            **({"headers": {name: {"schema": schema} for name, schema in headers.items()}} if headers else {}),
        }
        for status, (description, headers) in _KEY_ERRORS.items()
    }
    for path, operations in document["paths"].items():
        if path not in PUBLIC_PATHS:
            for operation in operations.values():
                operation["security"] = alternatives
                operation["responses"].update(key_errors)
    document["components"]["securitySchemes"] = schemes
