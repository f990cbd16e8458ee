"""uvicorn's protocol with limits, and a short way for requests that come whole.

How long may a connection take to send the head of a request, and to take an answer? uvicorn limits neither, so whoever
opens connections and says nothing would keep them for ever. Here are two timers, neither of which runs while requests
come whole and answers are taken at once.

A request for predictions whose body has come with its head is answered without a task of its own and without ASGI's
messages, which take as long as a row of a small network. Every other request goes uvicorn's way.

uvicorn looks its protocol up in a table that it does not document; `tests/deployments/test_closed_doors.py` holds that
and the limits, `test_connections.py` that both ways say the same.
"""

from __future__ import annotations

from asyncio import TimerHandle
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from bloomery.deployments.endpoint.http.errors import Refused
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.http.responses import Front, Reply

_MOST_HEAD_BYTES = 65_536


def limit_connections(limits: Limits) -> None:
    """Afterwards uvicorn's connections keep to the limits. Call it before uvicorn is configured."""
    Connection.limits = limits
    HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__name__}"


class Connection(HttpToolsProtocol):
    limits: ClassVar[Limits] = Limits()
    front: ClassVar[Front | None] = None  # answers what comes whole

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._until_head: TimerHandle | None = None
        self._until_taken: TimerHandle | None = None
        self._is_in_head = False
        self._head_bytes = 0
        self._is_reading = self._is_whole = False
        self._held: RequestResponseCycle | None = None  # until it is known whether its body comes with its head

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._until_head = self.loop.call_later(self.limits.head_seconds, self._say_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._until_head, self._until_taken):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._is_reading, self._is_whole = True, False
        super().data_received(data)
        self._is_reading = False
        if self._held is not None:
            cycle, self._held = self._held, None
            super()._start_asgi_task(cycle, self.app)
        # A request is under way, or was answered meanwhile, as it should be.
        if self.cycle is not None and (self._is_whole or not self.cycle.response_complete):
            if self._until_head is not None:
                self._until_head.cancel()
                self._until_head = None
            return
        if self._until_head is None:  # part of a head, empty lines, or what is left of a body that was refused
            self._until_head = self.loop.call_later(self.limits.head_seconds, self._say_late)
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MOST_HEAD_BYTES:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self._end(Refused(status, f"the head has more than {_MOST_HEAD_BYTES:,} bytes"))

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._is_whole = True
        cycle, self._held = self._held, None
        if cycle is not None:
            assert self.front is not None
            body, cycle.body = bytes(cycle.body), bytearray()
            self.front.answer(cycle.scope, body, partial(self._reply, cycle))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._is_reading and cycle is self.cycle and app is self.app and self._is_short(cycle):
            self._held = cycle
        else:
            super()._start_asgi_task(cycle, app)

    def _is_short(self, cycle: RequestResponseCycle) -> bool:
        scope = cycle.scope
        return (
            self.front is not None
            and scope["path"] == "/predict"
            and scope["method"] == "POST"
            and not cycle.waiting_for_100_continue
            and not self.flow.write_paused
        )

    def _reply(self, cycle: RequestResponseCycle, reply: Reply) -> None:
        """What `RequestResponseCycle.send` does with a whole answer, in one write."""
        if cycle.disconnected:
            return
        pieces = [STATUS_LINE[reply.status], _lines(self.server_state.default_headers)]
        for name, value in reply.headers:
            pieces += (name, b": ", value, b"\r\n")
        if (b"connection", b"close") in reply.headers:
            cycle.keep_alive = False
        elif not cycle.keep_alive:
            pieces.append(b"connection: close\r\n")
        pieces += (b"\r\n", reply.payload)
        self.transport.write(b"".join(pieces))
        cycle.response_started = cycle.response_complete = True
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._until_taken = self.loop.call_later(self.limits.answer_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._until_taken is not None:
            self._until_taken.cancel()
            self._until_taken = None

    def _say_late(self) -> None:
        if self._is_in_head:
            seconds = self.limits.head_seconds
            self._end(Refused(HTTPStatus.REQUEST_TIMEOUT, f"the head was not there within {seconds:g} s"))
        else:
            self.transport.close()

    def _end(self, refused: Refused) -> None:
        if self.transport.is_closing():
            return
        status, payload = HTTPStatus(refused.status), orjson.dumps(refused.document)
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(payload)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + payload)
        self.transport.close()


_Headers = list[tuple[bytes, bytes]]
_last: tuple[_Headers, bytes] = [], b""


def _lines(headers: _Headers) -> bytes:
    """As they are sent. uvicorn's own are a new list once a second, so the last is kept."""
    global _last
    if headers is not _last[0]:
        _last = headers, b"".join(b"%b: %b\r\n" % header for header in headers)
    return _last[1]
