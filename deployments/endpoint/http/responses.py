"""What goes back to a client, and who gives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from bloomery.deployments.endpoint.http.errors import Refused

JSON = "application/json"


class Reply(NamedTuple):
    """An answer over HTTP. Its headers hold the content's length."""

    status: int
    headers: list[tuple[bytes, bytes]]
    payload: bytes


Tell = Callable[[Reply], None]


class Front(Protocol):
    """An ASGI application that also answers a request for predictions whose body is there, without a task for it."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...

    def answer(self, scope: Mapping[str, Any], body: bytes, tell: Tell) -> None:
        """`tell` is called at most once, now or later: not where the client has gone."""


def refusal(refused: Refused, headers: Sequence[tuple[bytes, bytes]] = ()) -> Reply:
    """What a client that is refused is told, with `headers` before those that the refusal has itself."""
    payload = orjson.dumps(refused.document, default=str)
    own = ((name.encode(), value.encode()) for name, value in refused.headers.items())
    told = [*headers, *own, (b"content-type", JSON.encode()), (b"content-length", b"%d" % len(payload))]
    return Reply(int(refused.status), told, payload)


async def send_reply(reply: Reply, send: Callable[[Any], Any], *, is_head: bool = False) -> None:
    """Afterwards the reply was given to ASGI's `send`; of a HEAD request the head alone."""
    await send({"type": "http.response.start", "status": int(reply.status), "headers": reply.headers})
    await send({"type": "http.response.body", "body": b"" if is_head else reply.payload})
