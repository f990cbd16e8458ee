"""The endpoint over HTTP, as a plain ASGI application.

It reads and writes ASGI messages itself, because a request of one row takes microseconds, which the layers of a web
framework would multiply. `inner`, BentoML's application, serves BentoML's own paths.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson
import pyarrow as pa

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.requests.arrow_rows import ARROW_MEDIA_TYPE as ARROW
from bloomery.data_contracts.requests.columnar_rows import Row
from bloomery.data_contracts.requests.problems import BodyUnreadable, RowsRefused
from bloomery.data_contracts.serving.api_keys import KeyPolicy
from bloomery.data_contracts.serving.prediction_log import CANARY
from bloomery.deployments.endpoint.asgi.documentation import DocumentationPages
from bloomery.deployments.endpoint.asgi.embeddings import EMBEDDINGS_PATH, parse_embeddings
from bloomery.deployments.endpoint.asgi.media_rows import has_files, parse_media_rows
from bloomery.deployments.endpoint.asgi.multipart import MULTIPART
from bloomery.deployments.endpoint.asgi.request_body import ClientDisconnected, read_body, read_media_type
from bloomery.deployments.endpoint.asgi.rerank import RERANK_PATH, parse_rerank
from bloomery.deployments.endpoint.asgi.text_request import TextParser
from bloomery.deployments.endpoint.http.asgi_types import ASGIApp, Headers, Receive, Scope, Send
from bloomery.deployments.endpoint.http.errors import (
    HTTPError,
    body_too_large,
    overloaded,
    too_many_rows,
    unsupported_media_type,
)
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.http.responses import JSON, Response, SendResponse, error_response, write_response
from bloomery.deployments.endpoint.inference.explain import Explainer
from bloomery.deployments.endpoint.inference.micro_batcher import MicroBatcher, OnResult, PredictionBatch, RequestResult
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics

_TEXT_PARSERS: dict[str, TextParser] = {EMBEDDINGS_PATH: parse_embeddings, RERANK_PATH: parse_rerank}
_ROW_PATHS = ("/predict", "/explain", *_TEXT_PARSERS)
_BENTOML_PATHS = frozenset({"/livez", "/healthz", "/readyz", "/metrics", "/schema.json"})
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
_NUM_DECODING_THREADS = 2  # each may need the memory of a large image
_log = logging.getLogger("bloomery.endpoint")


class Application:
    """Serves predictions, explanations and the documentation pages with the version last passed to `use_version`.

    A share of the requests may go to another version, the canary.
    """

    def __init__(self, limits: Limits, metrics: Metrics, key_policy: KeyPolicy = "off") -> None:
        """Creates an endpoint without a version. `key_policy` is described in the OpenAPI document."""
        self._limits = limits
        self._key_policy = key_policy
        self.inner: ASGIApp | None = None
        self._champion: MicroBatcher | None = None
        self._canary: MicroBatcher | None = None
        self._canary_share = 0.0
        self._pages: DocumentationPages | None = None
        self._num_waiting = 0
        self._request_numbers = itertools.count()
        self._request_id_prefix = os.urandom(6).hex()
        self.metrics = metrics
        self._explainer = Explainer(limits)
        self._decoding_threads = ThreadPoolExecutor(_NUM_DECODING_THREADS, "decode")
        self._decoding_tasks: set[asyncio.Task[None]] = set()
        self.batch_listeners: list[Callable[[PredictionBatch], None]] = [self.metrics.observe_batch]
        # Called for every prediction request with the version's tag, the status and the problems of rows.
        self.request_listeners: list[Callable[[str, int, Sequence[Mapping[str, Any]]], None]] = []

    def use_version(self, version: LoadedVersion) -> None:
        """Switches to `version`; pending requests stay with the version they were submitted to. Thread-safe."""
        pages, batcher = DocumentationPages(version, self._key_policy), MicroBatcher(version, self._notify_batch)
        self._pages, self._champion = pages, batcher
        self.metrics.set_version(version.tag)

    def use_canary(self, version: LoadedVersion, share: float) -> None:
        """Sends a random `share` of the requests to `version`."""
        self._canary, self._canary_share = MicroBatcher(version, self._notify_batch, CANARY), share

    def _require_champion(self) -> MicroBatcher:
        if self._champion is None:
            raise HTTPError(HTTPStatus.SERVICE_UNAVAILABLE, "the endpoint is starting", headers={"retry-after": "1"})
        return self._champion

    def _draw_batcher(self) -> MicroBatcher:
        """The champion's batcher, or the canary's for its share of the requests."""
        if self._canary is not None and random.random() < self._canary_share:
            return self._canary
        return self._require_champion()

    def _notify_batch(self, batch: PredictionBatch) -> None:
        for listener in self.batch_listeners:
            listener(batch)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path in _ROW_PATHS:
                await self._handle_rows(scope, receive, send)
                return
            if path not in _BENTOML_PATHS or (path == "/readyz" and not self._is_ready):
                await self._handle_page(scope, send)
                return
        if self.inner is not None:
            await self.inner(scope, receive, send)

    @property
    def _is_ready(self) -> bool:
        """True if the endpoint has a model and its queue has room; a load balancer sends requests only then."""
        return self._champion is not None and self._num_waiting < self._limits.waiting

    async def _handle_rows(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        is_explanation, parse_texts = path == "/explain", _TEXT_PARSERS.get(path)
        request = self._open_request(scope["headers"], path)
        result: RequestResult | bytes | Exception
        try:
            batcher = self._admit(request, scope["method"])
            body = await read_body(request.headers, receive, self._limits)
            if parse_texts is not None:
                result = await self._serve_texts(batcher, request, parse_texts, body)
            elif is_explanation:
                rows = await self._read_rows(batcher.version, request, body, self._limits.explain_rows)
                result = await self._explain(batcher.version, rows, scope["query_string"])
            else:
                rows = await self._read_rows(batcher.version, request, body, self._limits.rows)
                result = await _submit_and_wait(batcher, rows, request.request_id, request.start_time)
        except Exception as failure:
            result = failure
        finally:
            self._num_waiting -= 1
        response = _build_response(request, result)
        if response is None:
            return
        if is_explanation:
            self.metrics.observe_explanation(response.status, time.perf_counter() - request.start_time)
        else:
            self._count_prediction_request(request, response)
        await write_response(response, send)

    async def _serve_texts(
        self, batcher: MicroBatcher, request: _Request, parse_texts: TextParser, body: bytes
    ) -> bytes:
        """The response to a request for texts, which share runs of the network with those of other requests."""
        if request.media_type != JSON:
            raise unsupported_media_type(request.media_type, (JSON,))
        texts = parse_texts(batcher.version, body, self._limits.rows)
        result = await _submit_and_wait(batcher, texts.rows, request.request_id, request.start_time)
        return texts.respond(result)

    def handle_predict(self, scope: Mapping[str, Any], body: bytes, send_response: SendResponse) -> None:
        """Serves `POST /predict` with a complete body, without a task or ASGI messages, which would double its cost."""
        request = self._open_request(scope["headers"])

        def finish(result: RequestResult | Exception) -> None:
            self._num_waiting -= 1
            response = _build_response(request, result)
            if response is not None:
                self._count_prediction_request(request, response)
                send_response(response)

        try:
            batcher = self._admit(request, "POST")
            if len(body) > self._limits.body_bytes:
                raise body_too_large(self._limits.body_bytes, f"{len(body):,} bytes")
            if has_files(batcher.version, request.media_type, body):
                self._start_decoding(batcher, request, body, finish)
                return
            rows = _parse_rows(batcher.version, request.media_type, body, self._limits.rows)
        except Exception as failure:
            finish(failure)
        else:
            batcher.submit(rows, request.request_id, request.start_time, finish)

    def _start_decoding(self, batcher: MicroBatcher, request: _Request, body: bytes, finish: OnResult) -> None:
        """Submits the rows of a request with files when they are decoded, and calls `finish` with the result."""

        async def decode_and_submit() -> None:
            try:
                rows = await self._decode_rows(batcher.version, request, body, self._limits.rows)
            except Exception as failure:
                finish(failure)
            else:
                batcher.submit(rows, request.request_id, request.start_time, finish)

        task = asyncio.get_running_loop().create_task(decode_and_submit())
        self._decoding_tasks.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(self._decoding_tasks.discard)

    async def _read_rows(
        self, version: LoadedVersion, request: _Request, body: bytes, max_rows: int
    ) -> list[Row] | pa.RecordBatch:
        if has_files(version, request.media_type, body):
            return await self._decode_rows(version, request, body, max_rows)
        return _parse_rows(version, request.media_type, body, max_rows)

    async def _decode_rows(
        self, version: LoadedVersion, request: _Request, body: bytes, max_rows: int
    ) -> list[Row] | pa.RecordBatch:
        """Validated rows of a request with files. A thread decodes them, so that other requests need not wait."""
        content_type = request.headers[b"content-type"] if request.media_type == MULTIPART else b""
        parse = partial(parse_media_rows, version, content_type, body, self._limits._replace(rows=max_rows))
        return await asyncio.get_running_loop().run_in_executor(self._decoding_threads, parse)

    def _open_request(self, header_list: Headers, path: str = "/predict") -> _Request:
        self._num_waiting += 1
        headers = dict(header_list)
        return _Request(headers, self._request_id(headers), path)

    def _admit(self, request: _Request, method: str) -> MicroBatcher:
        """The batcher for this request. Raises HTTPError for a wrong method or media type, or under overload."""
        batcher = self._draw_batcher()
        request.version = batcher.version
        if method != "POST":
            raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED, "send rows with POST", headers={"allow": "POST"})
        if self._num_waiting > self._limits.waiting:
            raise overloaded()
        request.media_type = read_media_type(request.headers, takes_files=bool(batcher.version.media))
        return batcher

    def _count_prediction_request(self, request: _Request, response: Response) -> None:
        self.metrics.observe_request(response.status, time.perf_counter() - request.start_time)
        if request.version is not None:
            for listener in self.request_listeners:
                listener(request.version.tag, response.status, request.problems)

    async def _explain(self, version: LoadedVersion, rows: list[Row] | pa.RecordBatch, query: bytes) -> bytes:
        batch = version.row_check.to_columns(rows).batch if isinstance(rows, list) else rows
        explanations = await self._explainer.explain(version, batch, query)
        return orjson.dumps({"explanations": explanations, "model": version.tag})

    async def predict(self, rows: list[Any]) -> tuple[int, dict[str, Any]]:
        """Status and JSON document for rows that are Python objects."""
        start_time = time.perf_counter()
        try:
            batcher = self._draw_batcher()
            (batch,) = batcher.version.row_check.parse_table(rows).to_batches()
            result = await _submit_and_wait(batcher, batch, self._request_id({}), start_time)
        except Exception as failure:
            error = _to_http_error(failure)
            assert error is not None
            return error.status, error.document
        return HTTPStatus.OK, {"predictions": result.predictions, "model": batcher.version.tag}

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        """The client's own id if it is valid, else a new one."""
        value = headers.get(b"x-request-id")
        if value is not None and _REQUEST_ID.fullmatch(text := value.decode("latin-1")):
            return text
        return f"{self._request_id_prefix}-{next(self._request_numbers)}"

    async def _handle_page(self, scope: Scope, send: Send) -> None:
        try:
            response = self._find_page(scope)
        except HTTPError as error:
            response = error_response(error, path=scope["path"])
        await write_response(response, send, is_head=scope["method"] == "HEAD")

    def _find_page(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            message = f"send rows with POST to {', '.join(_ROW_PATHS)}; every other path is read with GET"
            if DocumentationPages.has(scope["path"]):
                raise HTTPError(HTTPStatus.METHOD_NOT_ALLOWED, message, headers={"allow": "GET, HEAD"})
            raise HTTPError(HTTPStatus.NOT_FOUND, message)
        version = self._require_champion().version
        if scope["path"] == "/readyz":
            raise overloaded()
        page = None if self._pages is None else self._pages.page(scope["path"])
        if page is None:
            paths = f"{', '.join(_ROW_PATHS)}, /info, /card, /docs, /livez, /readyz and /metrics"
            raise HTTPError(HTTPStatus.NOT_FOUND, f"unknown path; the paths are {paths}")
        headers = [(name.encode(), value.encode()) for name, value in page.headers.items()]
        headers += [(b"x-model-version", version.tag.encode()), (b"content-type", page.media_type.encode())]
        return Response(page.status, [*headers, (b"content-length", b"%d" % len(page.body))], page.body)


class _Request:
    """The state of a request with rows, from its head to its response."""

    __slots__ = ("headers", "media_type", "path", "problems", "request_id", "start_time", "version")

    def __init__(self, headers: dict[bytes, bytes], request_id: str, path: str) -> None:
        self.start_time = time.perf_counter()
        self.headers, self.request_id, self.path = headers, request_id, path
        self.media_type = JSON
        self.version: LoadedVersion | None = None  # champion or canary, drawn for this request
        self.problems: Sequence[Mapping[str, Any]] = ()  # those in the response


async def _submit_and_wait(
    batcher: MicroBatcher, rows: list[Row] | pa.RecordBatch, request_id: str, start_time: float
) -> RequestResult:
    future: asyncio.Future[RequestResult] = asyncio.get_running_loop().create_future()

    def set_result(result: RequestResult | Exception) -> None:
        if future.done():  # cancelled: the client has disconnected
            return
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)

    batcher.submit(rows, request_id, start_time, set_result)
    return await future


def _parse_rows(version: LoadedVersion, media_type: str, body: bytes, max_rows: int) -> list[Row] | pa.RecordBatch:
    """Validated rows."""
    if not body:
        raise HTTPError(HTTPStatus.BAD_REQUEST, "the body is empty; /docs describes the rows to send")
    if media_type == ARROW:
        return version.arrow_check.parse_stream(body, max_rows)
    rows = version.row_check.parse_json(body)
    if len(rows) > max_rows:
        raise too_many_rows(len(rows), max_rows)
    return rows


def _build_response(request: _Request, result: RequestResult | bytes | Exception) -> Response | None:
    """The response with predictions, explanations or an error; None if the client has disconnected."""
    version = request.version
    identity = [(b"x-request-id", request.request_id.encode())]
    if version is not None:
        identity.append((b"x-model-version", version.tag_bytes))
    try:
        if isinstance(result, Exception):
            raise result
        if isinstance(result, bytes):
            body, media_type = result, JSON
        else:
            assert version is not None
            body, media_type = _serialize_predictions(version, result, request.headers)
    except Exception as failure:
        error = _to_http_error(failure)
        if error is None:
            return None
        request.problems = error.problems
        return error_response(error, identity, request.path)
    content = ((b"content-type", media_type.encode()), (b"content-length", b"%d" % len(body)))
    return Response(HTTPStatus.OK, [*content, *identity], body)


def _to_http_error(failure: Exception) -> HTTPError | None:
    """The error to send; None if the client has disconnected."""
    match failure:
        case HTTPError():
            return failure
        case RowsRefused():
            return HTTPError(HTTPStatus.UNPROCESSABLE_ENTITY, str(failure), failure.problems)
        case BodyUnreadable():
            return HTTPError(HTTPStatus.BAD_REQUEST, f"the body cannot be read: {failure}")
        case DataUnfit():
            return HTTPError(HTTPStatus.UNPROCESSABLE_ENTITY, failure.found)
        case ClientDisconnected():
            return None
    _log.error("a request failed", exc_info=failure)
    return HTTPError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the log of the endpoint")


def _serialize_predictions(
    version: LoadedVersion, result: RequestResult, headers: Mapping[bytes, bytes]
) -> tuple[bytes, str]:
    """Body and media type: an Arrow stream if the client accepts it, else JSON."""
    if ARROW.encode() in headers.get(b"accept", b""):
        table = version.predictions_table(result.outputs)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue().to_pybytes(), ARROW
    return orjson.dumps({"predictions": result.predictions, "model": version.tag}), JSON
