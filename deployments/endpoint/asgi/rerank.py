"""`POST /rerank`: documents in the order of their relevance to a query, by a model that reads pairs of texts.

The request and the response are those that Cohere, Jina and Hugging Face's servers have in common.

Shapes: B rows.
"""

from __future__ import annotations

from functools import partial
from http import HTTPStatus
from typing import Any

import numpy as np
import orjson

from bloomery.data_contracts.requests.problems import RowsRefused
from bloomery.deployments.endpoint.asgi.text_request import TextRequest
from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.inference.micro_batcher import RequestResult
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.features.encoder import Encoder
from bloomery.models.features.input_config import TextInput

RERANK_PATH = "/rerank"
_PARAMETERS = ("query", "documents", "top_n", "return_documents", "relevant_class", "model")
# Pairs of class names: the second class is that of relevant documents.
_KNOWN_PAIRS = (("0", "1"), ("-1", "1"), ("false", "true"), ("no", "yes"))


def parse_rerank(version: LoadedVersion, body: bytes, max_rows: int) -> TextRequest:
    """Reads a request to rerank documents.

    Raises:
        HTTPError: the version does not score pairs of texts, or a parameter is missing or not valid.
    """
    source = find_pair(version.encoder)
    if source is None:
        raise HTTPError(
            HTTPStatus.NOT_FOUND,
            f"{version.tag} does not score pairs of texts: it needs a text input with `pair`, and a number or classes "
            "as its label; send rows to /predict",
        )
    document = _read_document(body)
    query, documents = document.get("query"), document.get("documents")
    if not isinstance(query, str):
        raise _invalid("query", query, "a text")
    texts = _read_documents(documents, max_rows)
    top_n = document.get("top_n")
    if top_n is not None and (not isinstance(top_n, int) or isinstance(top_n, bool) or top_n < 1):
        raise _invalid("top_n", top_n, "a whole number of at least 1")
    with_documents = document.get("return_documents", False)
    if not isinstance(with_documents, bool):
        raise _invalid("return_documents", with_documents, "true or false")
    relevant = _read_relevant_class(version.encoder, document.get("relevant_class"))
    try:
        rows = version.row_check.parse_rows([{source.column: query, source.pair: text} for text in texts])
    except RowsRefused as refusal:
        raise HTTPError(HTTPStatus.UNPROCESSABLE_ENTITY, str(refusal), refusal.problems) from refusal
    return TextRequest(rows, partial(_respond, version, texts if with_documents else None, top_n, relevant))


def find_pair(encoder: Encoder) -> TextInput | None:
    """The input of a model that scores pairs of texts, by a number or by the probability of a class; else None."""
    source = encoder.features.inputs[0]
    if len(encoder.features.inputs) > 1 or not isinstance(source, TextInput) or source.pair is None:
        return None
    is_score = encoder.units is not None or encoder.features.task == "classification"
    return source if is_score else None


def find_relevant_class(encoder: Encoder) -> int | None:
    """The position of the class of relevant documents, where the names of the classes tell; else None.

    Classes are sorted by name, so the second one of entailment and not_entailment is the wrong one.
    """
    names = tuple(str(name).lower() for name in encoder.classes)
    return next((names.index(pair[1]) for pair in _KNOWN_PAIRS if sorted(names) == sorted(pair)), None)


def _read_relevant_class(encoder: Encoder, name: Any) -> int | None:
    """The position of the class whose probability is the score; None of a regression."""
    if encoder.units is not None:
        if name is not None:
            raise _invalid("relevant_class", name, "left out: the score of this model is a number")
        return None
    position = find_relevant_class(encoder)
    if name is None and position is not None:
        return position
    names = [str(known) for known in encoder.classes]
    if not isinstance(name, str | int) or str(name) not in names:
        raise _invalid("relevant_class", name, f"the class of relevant documents, one of {', '.join(names[:20])}")
    return names.index(str(name))


def _read_document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as failure:
        raise HTTPError(HTTPStatus.BAD_REQUEST, f"the body cannot be read: {failure}") from None
    if not isinstance(document, dict):
        raise HTTPError(HTTPStatus.BAD_REQUEST, 'the body must be an object such as {"query": "…", "documents": ["…"]}')
    unknown = next((name for name in document if name not in _PARAMETERS), None)
    if unknown is not None:
        raise _invalid(unknown, document[unknown], f"one of the parameters {', '.join(_PARAMETERS)}")
    return document


def _read_documents(documents: Any, max_rows: int) -> list[str]:
    """The texts; a document may also be an object with `text`, as clients of Cohere send it."""
    if not isinstance(documents, list) or not documents:
        raise _invalid("documents", documents, "a list with at least one text")
    if len(documents) > max_rows:
        message = (
            f"the request has {len(documents):,} documents; the limit is {max_rows:,}; send them in several requests"
        )
        raise HTTPError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)
    texts: list[str] = []
    for position, item in enumerate(documents):
        text = item.get("text") if isinstance(item, dict) else item
        if not isinstance(text, str):
            raise _invalid(f"documents[{position}]", item, 'a text, or {"text": "…"}')
        texts.append(text)
    return texts


def _invalid(name: str, value: Any, required: str) -> HTTPError:
    found = "no value" if value is None else repr(value)[:80]
    return HTTPError(HTTPStatus.UNPROCESSABLE_ENTITY, f"{name}: found {found}, but it must be {required}")


def _respond(
    version: LoadedVersion, texts: list[str] | None, top_n: int | None, relevant: int | None, result: RequestResult
) -> bytes:
    scores_B = result.outputs if relevant is None else result.outputs[:, relevant]
    order = np.argsort(-scores_B, kind="stable")[:top_n].tolist()
    results = [
        {
            "index": position,
            "relevance_score": float(scores_B[position]),
            **({} if texts is None else {"document": {"text": texts[position]}}),
        }
        for position in order
    ]
    return orjson.dumps({"results": results, "model": version.tag})
