"""How long a connection may take: to send the head of a request, and to take an answer.

uvicorn limits neither, so whoever opens connections and says nothing would keep them for ever. This is its protocol
with two timers, neither of which runs while requests come whole and answers are taken at once. uvicorn looks its
protocol up in a table that it does not document; `tests/deployments/test_closed_doors.py` holds both.
"""

from __future__ import annotations

from asyncio import TimerHandle
from http import HTTPStatus
from typing import Any, ClassVar

import orjson
from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployments.endpoint.limits import Limits
from deployments.endpoint.refusals import Refused

_MOST_HEAD_BYTES = 65_536


def limit_connections(limits: Limits) -> None:
    """Afterwards uvicorn's connections keep to the limits. Call it before uvicorn is configured."""
    Connection.limits = limits
    HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__name__}"


class Connection(HttpToolsProtocol):
    limits: ClassVar[Limits] = Limits()

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._until_head: TimerHandle | None = None
        self._until_taken: TimerHandle | None = None
        self._is_in_head = False
        self._head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._until_head = self.loop.call_later(self.limits.head_seconds, self._say_late)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._until_head, self._until_taken):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:  # a request is under way, as it should be
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
