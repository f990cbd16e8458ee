"""`POST /v1/embeddings`: vectors of texts, in the requests, responses and errors of OpenAI's clients.

Source: https://platform.openai.com/docs/api-reference/embeddings

Shapes: B rows, W values of a vector.
"""

from __future__ import annotations

import base64
from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson

from bloomery.data_contracts.records.tensor_layout import describe_task
from bloomery.data_contracts.requests.problems import RowsRefused
from bloomery.deployments.endpoint.asgi.text_request import TextRequest
from bloomery.deployments.endpoint.http.errors import ApiError
from bloomery.deployments.endpoint.inference.micro_batcher import RequestResult
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion

EMBEDDINGS_PATH = "/v1/embeddings"
ENCODING_FORMATS = ("float", "base64")
_PARAMETERS = ("input", "model", "encoding_format", "dimensions", "user")


def parse_embeddings(version: LoadedVersion, body: bytes, max_rows: int) -> TextRequest:
    """Reads a request for vectors.

    Raises:
        ApiError: the version computes no vectors, or a parameter is missing or not valid.
    """
    if not version.is_embedding:
        task = describe_task(version.encoder.features.task)
        raise ApiError(HTTPStatus.NOT_FOUND, f"{version.tag} is {task} and computes no vectors; send rows to /predict")
    document = _read_document(body)
    _require_model(version, document.get("model"))
    texts = _read_texts(document, max_rows)
    encoding_format = document.get("encoding_format", "float")
    if encoding_format not in ENCODING_FORMATS:
        raise _invalid("encoding_format", f"is {encoding_format!r}; it must be float or base64")
    dimensions = document.get("dimensions")
    width = version.vector_width
    if dimensions is not None and (not _is_count(dimensions) or not 1 <= dimensions <= width):
        raise _invalid("dimensions", f"is {dimensions!r}; it must be a whole number from 1 to {width}")
    (column,) = version.encoder.columns
    try:
        rows = version.row_check.parse_rows([{column: text} for text in texts])
    except RowsRefused as refusal:
        raise _invalid("input", f"is refused by the model's contract: {refusal}") from refusal
    return TextRequest(rows, partial(_respond, version, encoding_format, dimensions))


def _read_document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as failure:
        raise ApiError(HTTPStatus.BAD_REQUEST, f"the body is not JSON: {failure}") from None
    if not isinstance(document, dict):
        raise ApiError(HTTPStatus.BAD_REQUEST, 'the body must be an object such as {"input": "a text"}')
    unknown = next((name for name in document if name not in _PARAMETERS), None)
    if unknown is not None:
        raise _invalid(unknown, f"is not known; the parameters are {', '.join(_PARAMETERS)}")
    return document


def _require_model(version: LoadedVersion, model: Any) -> None:
    """The model's name, or that of the version; a client that names another model would mistake the vectors."""
    name = version.tag.partition(":")[0]
    if model is None:
        raise _invalid("model", f"is missing; this endpoint serves {name}")
    if model not in (name, version.tag):
        message = f"the model {model!r} does not exist here; this endpoint serves {name}"
        raise ApiError(HTTPStatus.NOT_FOUND, message, param="model", code="model_not_found")


def _read_texts(document: dict[str, Any], max_rows: int) -> list[str]:
    texts = document.get("input")
    if texts is None:
        raise _invalid("input", "is missing; send a text or a list of texts")
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, list) or not texts:
        raise _invalid("input", "must be a text or a list of texts, with at least one")
    if len(texts) > max_rows:
        raise _invalid("input", f"has {len(texts):,} texts; the limit is {max_rows:,}: send them in several requests")
    for position, text in enumerate(texts):
        if _is_count(text) or isinstance(text, list):
            raise _invalid(
                "input",
                "has token ids, which belong to the tokenizer of another model; send texts "
                "(in LangChain: check_embedding_ctx_length=False)",
            )
        if not isinstance(text, str):
            raise _invalid("input", f"has {text!r} at position {position}; each element must be a text")
    return texts


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _invalid(param: str, problem: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, f"{param} {problem}", param=param)


def _respond(version: LoadedVersion, encoding_format: str, dimensions: int | None, result: RequestResult) -> bytes:
    vectors_BW = np.ascontiguousarray(cut_vectors(result.outputs, dimensions, is_int8=version.has_int8_vectors))
    encoded = list(vectors_BW) if encoding_format == "float" else [_to_base64(vector) for vector in vectors_BW]
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(encoded)]
    num_tokens = result.num_tokens
    usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
    document = {"object": "list", "data": data, "model": version.tag, "usage": usage}
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)


def cut_vectors(vectors_BW: np.ndarray, dimensions: int | None, *, is_int8: bool) -> np.ndarray:
    """The first `dimensions` values of vectors, float32, scaled to length 1 again; integers stay as they are."""
    if dimensions is None or dimensions == vectors_BW.shape[1]:
        return vectors_BW
    cut = vectors_BW[:, :dimensions]
    if is_int8:
        return cut
    lengths_B1 = np.linalg.norm(cut, axis=1, keepdims=True)
    return cut / np.where(lengths_B1 > 0, lengths_B1, 1)


def _to_base64(vector_W: np.ndarray) -> str:
    """The values as little-endian float32, as OpenAI's clients decode them."""
    return base64.b64encode(vector_W.astype("<f4").tobytes()).decode()
