"""uvicorn's HTTP protocol with time limits, and a fast path for requests that arrive complete.

uvicorn limits neither the time to send the head of a request nor the time to read a response, so an idle client could
keep its connection forever. Two timers prevent that. They do not run while requests arrive complete and responses are
read at once.

A prediction request whose body arrives with its head is served without a task and without ASGI messages, which take as
long as a row of a small network. uvicorn handles every other request as usual.

uvicorn looks up its protocol in an undocumented table; `tests/deployments/test_authenticated_server.py` checks that and
the limits, `test_uvicorn_protocol.py` that both paths give the same responses.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import TimerHandle
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar, cast

import httptools
import orjson
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from bloomery.deployments.endpoint.asgi.request_head import (
    MAX_HEAD_BYTES,
    MAX_URL_BYTES,
    Rejection,
    count_head_bytes,
    find_host_problem,
    head_too_large,
    without_upgrade,
)
from bloomery.deployments.endpoint.http.asgi_types import Headers
from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.http.responses import EndpointApp, Response


def install_protocol(limits: Limits) -> None:
    """Makes uvicorn use `EndpointProtocol` with these limits. Call it before uvicorn is configured."""
    EndpointProtocol.limits = limits
    HTTP_PROTOCOLS["auto"] = f"{EndpointProtocol.__module__}:{EndpointProtocol.__name__}"


class EndpointProtocol(HttpToolsProtocol):
    """The protocol of one connection."""

    limits: ClassVar[Limits] = Limits()
    endpoint: ClassVar[EndpointApp | None] = None  # serves the fast path

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: TimerHandle | None = None
        self._write_timer: TimerHandle | None = None
        self._is_in_head = False
        self._head_bytes = 0
        self._is_parsing = self._is_message_complete = False
        self._data = b""  # that is parsed now
        self.url = b""
        self._asks_for_upgrade = False
        self._may_be_too_large = False  # the head that is parsed now
        self._held_cycle: RequestResponseCycle | None = None  # held until the body has come with the head or has not

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._end_after_timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._is_parsing, self._is_message_complete, self._data = True, False, data
        self._may_be_too_large = self._head_bytes + len(data) > MAX_HEAD_BYTES
        super().data_received(data)
        self._is_parsing, self._data = False, b""
        if self._held_cycle is not None:
            cycle, self._held_cycle = self._held_cycle, None
            super()._start_asgi_task(cycle, self.app)
        # A request is in progress, or has just been served.
        if self.cycle is not None and (self._is_message_complete or not self.cycle.response_complete):
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
            return
        if self._head_timer is None:  # part of a head, empty lines, or the rest of a rejected body
            self._head_timer = self.loop.call_later(self.limits.head_seconds, self._end_after_timeout)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._end(head_too_large())

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._asks_for_upgrade = self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)
        if self._asks_for_upgrade:
            return
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._asks_for_upgrade:
            return
        super().on_message_complete()
        self._is_message_complete = True
        cycle, self._held_cycle = self._held_cycle, None
        if cycle is not None:
            assert self.endpoint is not None
            body, cycle.body = bytes(cycle.body), bytearray()
            self.endpoint.handle_predict(cycle.scope, body, partial(self._send_response, cycle))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        problem = self._find_head_problem(cycle.scope)
        if problem is not None:
            rejection: Any = Rejection(problem)
            super()._start_asgi_task(cycle, rejection)
        elif self._is_parsing and cycle is self.cycle and app is self.app and self._can_take_fast_path(cycle):
            self._held_cycle = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _find_head_problem(self, scope: Any) -> HTTPError | None:
        # A head that came in fewer bytes need not be counted. A pipelined request starts when no data is parsed.
        if (self._may_be_too_large or not self._is_parsing) and count_head_bytes(scope) > MAX_HEAD_BYTES:
            return head_too_large()
        return find_host_problem(scope)

    def _can_take_fast_path(self, cycle: RequestResponseCycle) -> bool:
        scope = cycle.scope
        return (
            self.endpoint is not None
            and scope["path"] == "/predict"
            and scope["method"] == "POST"
            and not cycle.waiting_for_100_continue
            and not self.flow.write_paused
        )

    def _send_response(self, cycle: RequestResponseCycle, response: Response) -> None:
        """Sends a complete response as `RequestResponseCycle.send` does, but in one write."""
        if cycle.disconnected:
            return
        pieces = [STATUS_LINE[response.status], _header_lines(self.server_state.default_headers)]
        for name, value in response.headers:
            pieces += (name, b": ", value, b"\r\n")
        if (b"connection", b"close") in response.headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            pieces.append(b"connection: close\r\n")
        pieces += (b"\r\n", response.body)
        self.transport.write(b"".join(pieces))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request, or one whose address is too long for the parser, as every other error."""
        if len(self.url) > MAX_URL_BYTES:
            self._end(head_too_large())
        else:
            self._end(HTTPError(HTTPStatus.BAD_REQUEST, "the request is not valid HTTP/1.1"))

    def _should_upgrade(self) -> bool:
        # The endpoint has no WebSockets. Their protocol would take over the connection, without limits and timers.
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Serves a request that asks for another protocol in this one, as HTTP/1.1 allows.

        Java's client asks for HTTP/2 in its first request. The parser stops behind the head of such a request and takes
        the body for the other protocol, so another parser reads the request without the question.
        """
        if not self._asks_for_upgrade:
            return
        self._asks_for_upgrade = False
        (rest_offset,) = cast("httptools.HttpParserUpgrade", sys.exception()).args
        version = self.parser.get_http_version()
        head = without_upgrade(self.parser.get_method(), self.url, version, self.headers)
        rest, self._data = self._data[rest_offset:], head
        self.parser = httptools.HttpRequestParser(self)
        super().data_received(head)
        if rest and not self.transport.is_closing():
            self._data = rest
            super().data_received(rest)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.limits.response_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _end_after_timeout(self) -> None:
        if self._is_in_head:
            seconds = self.limits.head_seconds
            self._end(HTTPError(HTTPStatus.REQUEST_TIMEOUT, f"the head was not complete within {seconds:g} s"))
        else:
            self.transport.close()

    def _end(self, error: HTTPError) -> None:
        if self.transport.is_closing():
            return
        status, body = HTTPStatus(error.status), orjson.dumps(error.document)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


_cached_lines: tuple[Headers, bytes] = [], b""


def _header_lines(headers: Headers) -> bytes:
    """Returns the headers as bytes. The last list is cached, since uvicorn's default headers change once per second."""
    global _cached_lines
    if headers is not _cached_lines[0]:
        _cached_lines = headers, b"".join(b"%b: %b\r\n" % header for header in headers)
    return _cached_lines[1]
