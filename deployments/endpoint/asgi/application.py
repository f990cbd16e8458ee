"""The endpoint over HTTP, as a plain ASGI application.

A request of one row is a few microseconds of work, which a web framework's layers would multiply: so this reads and
writes ASGI's own messages. `inner`, BentoML's application, answers the paths that are its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
import pyarrow as pa

from bloomery.data_contracts.errors import DataUnfit
from bloomery.data_contracts.requests.arrow_rows import MEDIA_TYPE as ARROW
from bloomery.data_contracts.requests.columnar_rows import Row
from bloomery.data_contracts.requests.json_rows import BodyUnreadable, RowsRefused
from bloomery.data_contracts.serving.api_keys import Demand
from bloomery.data_contracts.serving.prediction_log import CANARY
from bloomery.deployments.endpoint.asgi.documentation import Pages
from bloomery.deployments.endpoint.asgi.eager_task import Begun
from bloomery.deployments.endpoint.http.errors import Refused, no_media_type, overloaded, too_large, too_many_rows
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.http.responses import JSON, Reply, Tell, refusal, send_reply
from bloomery.deployments.endpoint.inference.explain import Explanations
from bloomery.deployments.endpoint.inference.micro_batcher import Answered, Given, Ticks
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.deployments.endpoint.telemetry.metrics import Measures

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Coroutine[Any, Any, Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OF_BENTOML = frozenset({"/livez", "/healthz", "/readyz", "/metrics", "/schema.json"})
_JSON = JSON.encode()
_REQUEST_ID = re.compile(r"[\w.:-]{1,64}")
_log = logging.getLogger("bloomery.endpoint")


class Application:
    """Answers `/predict` and `/explain` with the version that `use` was given last; `/info` and `/docs` tell of it.

    A share of the requests may be another version's, the canary's.
    """

    def __init__(self, limits: Limits, measures: Measures, keys: Demand = "off") -> None:
        """`keys` says where one is demanded, for the OpenAPI page."""
        self._limits = limits
        self._keys = keys
        self.inner: App | None = None
        self._ticks: Ticks | None = None
        self._canary: Ticks | None = None
        self._canary_share = 0.0
        self._pages: Pages | None = None
        self._num_waiting = 0
        self._numbers = itertools.count()
        self._prefix = os.urandom(6).hex()
        self.measures = measures
        self._explanations = Explanations(limits)
        self.on_answered: list[Callable[[Answered], None]] = [self.measures.answered]
        # Told of every request for predictions: the version's tag, the status, what was wrong with rows.
        self.on_asked: list[Callable[[str, int, Sequence[Mapping[str, Any]]], None]] = []

    def use(self, version: Version) -> None:
        """From now on requests are answered by `version`; those that wait are by the one that they were asked of."""
        pages, ticks = Pages(version, self._keys), Ticks(version, self.tell)
        self._pages, self._ticks = pages, ticks  # whole, whichever thread it is done in
        self.measures.serves(version.tag)

    def try_out(self, version: Version, share: float) -> None:
        """From now on `version` answers this share of the requests, drawn by chance."""
        self._canary, self._canary_share = Ticks(version, self.tell, CANARY), share

    @property
    def _in_use(self) -> Ticks:
        if self._ticks is None:
            raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "the endpoint is starting", headers={"retry-after": "1"})
        return self._ticks

    @property
    def _drawn(self) -> Ticks:
        """Those of the version that answers this request."""
        if self._canary is not None and random.random() < self._canary_share:
            return self._canary
        return self._in_use

    def tell(self, answered: Answered) -> None:
        for listener in self.on_answered:
            listener(answered)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if path in ("/predict", "/explain"):
                await self._rows_asked(scope, receive, send, is_explaining=path == "/explain")
                return
            if path not in _OF_BENTOML or (path == "/readyz" and not self._is_ready):
                await self._page(scope, send)
                return
        if self.inner is not None:
            await self.inner(scope, receive, send)

    @property
    def _is_ready(self) -> bool:
        """Whether a further request would be answered, so that a balancer may send it here."""
        return self._ticks is not None and self._num_waiting < self._limits.waiting

    async def _rows_asked(self, scope: Scope, receive: Receive, send: Send, *, is_explaining: bool) -> None:
        asked = self._begin(scope["headers"])
        outcome: Given | bytes | Exception
        try:
            ticks = self._admit(asked, scope["method"])
            body = await self._body(asked.headers, receive)
            if is_explaining:
                outcome = await self._explained(ticks.version, asked.media_type, body, scope["query_string"])
            else:
                rows = self._rows(ticks.version, asked.media_type, body, self._limits.rows)
                outcome = await _given(ticks, rows, asked.request, asked.began)
        except Exception as failure:
            outcome = failure
        finally:
            self._num_waiting -= 1
        reply = self._reply(asked, outcome)
        if reply is None:
            return
        if is_explaining:
            self.measures.explained(reply.status, time.perf_counter() - asked.began)
        else:
            self._count(asked, reply)
        await send_reply(reply, send)

    def answer(self, scope: Mapping[str, Any], body: bytes, tell: Tell) -> None:
        """Answer `POST /predict`, whose body is there. A task, and ASGI's messages, would double what a row costs."""
        asked = self._begin(scope["headers"])

        def settle(outcome: Given | Exception) -> None:
            self._num_waiting -= 1
            reply = self._reply(asked, outcome)
            if reply is not None:
                self._count(asked, reply)
                tell(reply)

        try:
            ticks = self._admit(asked, "POST")
            if len(body) > self._limits.body_bytes:
                raise too_large(self._limits.body_bytes, f"{len(body):,} bytes")
            rows = self._rows(ticks.version, asked.media_type, body, self._limits.rows)
        except Exception as failure:
            settle(failure)
        else:
            ticks.ask(rows, asked.request, asked.began, settle)

    def _begin(self, stated: Sequence[tuple[bytes, bytes]]) -> _Asked:
        self._num_waiting += 1
        headers = dict(stated)
        return _Asked(headers, self._request_id(headers))

    def _admit(self, asked: _Asked, method: str) -> Ticks:
        """Those of the version that answers. Raises Refused where it may not be asked so."""
        ticks = asked.ticks = self._drawn
        if method != "POST":
            raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, "rows are sent by POST", headers={"allow": "POST"})
        if self._num_waiting > self._limits.waiting:
            raise overloaded()
        asked.media_type = _media_type(asked.headers)
        return ticks

    def _reply(self, asked: _Asked, outcome: Given | bytes | Exception) -> Reply | None:
        """What the client is told of predictions, of explanations, or of why there are none; None if it has gone."""
        version = None if asked.ticks is None else asked.ticks.version
        whose = [(b"x-request-id", asked.request.encode())]
        if version is not None:
            whose.append((b"x-model-version", version.tag_bytes))
        try:
            if isinstance(outcome, Exception):
                raise outcome
            if isinstance(outcome, bytes):
                payload, media_type = outcome, JSON
            else:
                assert version is not None
                payload, media_type = _written(version, outcome, asked.headers)
        except Exception as failure:
            refused = _refused(failure)
            if refused is None:
                return None
            asked.problems = refused.problems
            return refusal(refused, whose)
        content = ((b"content-type", media_type.encode()), (b"content-length", b"%d" % len(payload)))
        return Reply(HTTPStatus.OK, [*content, *whose], payload)

    def _count(self, asked: _Asked, reply: Reply) -> None:
        self.measures.asked(reply.status, time.perf_counter() - asked.began)
        if asked.ticks is not None:
            for listener in self.on_asked:
                listener(asked.ticks.version.tag, reply.status, asked.problems)

    async def _explained(self, version: Version, media_type: str, body: bytes, query: bytes) -> bytes:
        rows = self._rows(version, media_type, body, self._limits.explain_rows)
        batch = version.check.columns(rows).batch if isinstance(rows, list) else rows
        return orjson.dumps({"explanations": await self._explanations.ask(version, batch, query), "model": version.tag})

    async def answered(self, rows: list[Any]) -> tuple[int, dict[str, Any]]:
        """The status and the document for rows that are Python's objects already."""
        began = time.perf_counter()
        try:
            ticks = self._drawn
            (batch,) = ticks.version.check.table(rows).to_batches()
            given = await _given(ticks, batch, self._request_id({}), began)
        except Exception as failure:
            refused = _refused(failure)
            assert refused is not None
            return refused.status, refused.document
        return HTTPStatus.OK, {"predictions": given.predictions, "model": ticks.version.tag}

    def _request_id(self, headers: dict[bytes, bytes]) -> str:
        """The client's own, if it is a plain word."""
        stated = headers.get(b"x-request-id")
        if stated is not None and _REQUEST_ID.fullmatch(text := stated.decode("latin-1")):
            return text
        return f"{self._prefix}-{next(self._numbers)}"

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        limit = self._limits.body_bytes
        stated = headers.get(b"content-length", b"0")
        if stated.isdigit() and int(stated) > limit:
            raise too_large(limit, f"{int(stated):,} bytes")
        begun = Begun(receive())
        message = begun.value
        if message is None or message.get("more_body"):
            message, body = await self._pieces(begun, receive)
        else:
            body = message.get("body", b"")
        if message["type"] == "http.disconnect":
            raise _Gone
        if len(body) > limit:
            raise too_large(limit, f"{len(body):,} bytes")
        return body

    async def _pieces(self, begun: Begun[Message], receive: Receive) -> tuple[Message, bytes]:
        """The last message and the body of a request that is not there yet."""
        limit = self._limits.body_bytes
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                message = begun.value or await begun
                pieces = [message.get("body", b"")]
                num_bytes = len(pieces[0])
                while message.get("more_body"):
                    message = await receive()
                    pieces.append(message.get("body", b""))
                    num_bytes += len(pieces[-1])
                    if num_bytes > limit:
                        raise too_large(limit, f"more than {limit:,} bytes")
                return message, b"".join(pieces)
        except TimeoutError:
            seconds = self._limits.body_seconds
            raise Refused(
                HTTPStatus.REQUEST_TIMEOUT,
                f"the body was not there within {seconds:g} s",
                headers={"connection": "close"},
            ) from None

    def _rows(self, version: Version, media_type: str, body: bytes, most: int) -> list[Row] | pa.RecordBatch:
        """Checked rows."""
        if not body:
            raise Refused(HTTPStatus.BAD_REQUEST, "the body is empty; send rows as /docs describes them")
        if media_type == ARROW:
            return version.arrow_check.rows(body, most)
        rows = version.check.rows(body)
        if len(rows) > most:
            raise too_many_rows(len(rows), most)
        return rows

    async def _page(self, scope: Scope, send: Send) -> None:
        try:
            reply = self._found(scope)
        except Refused as refused:
            reply = refusal(refused)
        await send_reply(reply, send, is_head=scope["method"] == "HEAD")

    def _found(self, scope: Scope) -> Reply:
        if scope["method"] not in ("GET", "HEAD"):
            error = "rows are sent by POST to /predict and /explain; everything else is read by GET"
            if Pages.has(scope["path"]):
                raise Refused(HTTPStatus.METHOD_NOT_ALLOWED, error, headers={"allow": "GET, HEAD"})
            raise Refused(HTTPStatus.NOT_FOUND, error)
        version = self._in_use.version
        if scope["path"] == "/readyz":
            raise overloaded()
        page = None if self._pages is None else self._pages.page(scope["path"])
        if page is None:
            there = "/predict, /explain, /info, /card, /docs, /livez, /readyz and /metrics"
            raise Refused(HTTPStatus.NOT_FOUND, f"there is {there}")
        headers = [(name.encode(), value.encode()) for name, value in page.headers.items()]
        headers += [(b"x-model-version", version.tag.encode()), (b"content-type", page.media_type.encode())]
        return Reply(page.status, [*headers, (b"content-length", b"%d" % len(page.body))], page.body)


class _Asked:
    """A request for predictions or explanations, from its head to its reply."""

    __slots__ = ("began", "headers", "media_type", "problems", "request", "ticks")

    def __init__(self, headers: dict[bytes, bytes], request: str) -> None:
        self.began = time.perf_counter()
        self.headers, self.request = headers, request
        self.media_type = JSON
        self.ticks: Ticks | None = None  # those of the version that was drawn for it
        self.problems: Sequence[Mapping[str, Any]] = ()  # as many as the client is told of


class _Gone(Exception):
    """The client has closed the connection before its request was there."""


async def _given(ticks: Ticks, rows: list[Row] | pa.RecordBatch, request: str, began: float) -> Given:
    """The answers, for a task that waits for them."""
    answer: asyncio.Future[Given] = asyncio.get_running_loop().create_future()

    def settle(outcome: Given | Exception) -> None:
        if answer.done():  # the client has gone
            return
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    ticks.ask(rows, request, began, settle)
    return await answer


def _media_type(headers: dict[bytes, bytes]) -> str:
    if headers.get(b"content-encoding", b"identity") != b"identity":
        found = headers[b"content-encoding"].decode("latin-1")
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is encoded as {found}; send it as it is")
    sent = headers.get(b"content-type", b"")
    if sent == _JSON:  # as nearly all say it
        return JSON
    stated = sent.decode("latin-1").split(";")[0].strip().lower()
    if stated not in (JSON, ARROW):
        raise no_media_type(stated, (JSON, ARROW))
    return stated


def _refused(failure: Exception) -> Refused | None:
    """What the client is told; None if it has gone."""
    match failure:
        case Refused():
            return failure
        case RowsRefused():
            return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(failure), failure.problems)
        case BodyUnreadable():
            return Refused(HTTPStatus.BAD_REQUEST, f"the body cannot be read: {failure}")
        case DataUnfit():
            return Refused(HTTPStatus.UNPROCESSABLE_ENTITY, failure.found)
        case _Gone():
            return None
    _log.error("a request could not be answered", exc_info=failure)
    return Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "the endpoint is at fault; its log says more")


def _written(version: Version, given: Given, headers: dict[bytes, bytes]) -> tuple[bytes, str]:
    """The answers in the form that the client asks for: an Arrow stream if it says so, else JSON."""
    if ARROW.encode() in headers.get(b"accept", b""):
        table = version.as_table(given.array)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        return sink.getvalue().to_pybytes(), ARROW
    return orjson.dumps({"predictions": given.predictions, "model": version.tag}), JSON
