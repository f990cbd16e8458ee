"""HTTP responses, and the interface of the applications that send them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from bloomery.deployments.endpoint.http.asgi_types import Headers, Receive, Scope, Send
from bloomery.deployments.endpoint.http.errors import HTTPError, openai_document

JSON = "application/json"


class Response(NamedTuple):
    """A complete HTTP response. Its headers include the content length."""

    status: int
    headers: Headers
    body: bytes


SendResponse = Callable[[Response], None]


class EndpointApp(Protocol):
    """An ASGI application with a shortcut for prediction requests whose body has arrived: no task, no ASGI messages."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...

    def handle_predict(self, scope: Mapping[str, Any], body: bytes, send_response: SendResponse) -> None:
        """Calls `send_response` at most once, now or later; never for a client that has disconnected."""


OPENAI_PREFIX = "/v1/"  # of the paths with requests, responses and errors in OpenAI's form


def error_response(error: HTTPError, headers: Sequence[tuple[bytes, bytes]] = (), path: str = "") -> Response:
    """Returns the response for an error of a request to `path`. `headers` precede the error's own headers."""
    document = openai_document(error) if path.startswith(OPENAI_PREFIX) else error.document
    body = orjson.dumps(document, default=str)
    error_headers = ((name.encode(), value.encode()) for name, value in error.headers.items())
    content_headers = ((b"content-type", JSON.encode()), (b"content-length", b"%d" % len(body)))
    return Response(int(error.status), [*headers, *error_headers, *content_headers], body)


async def write_response(response: Response, send: Send, *, is_head: bool = False) -> None:
    """Sends a response as ASGI messages; a HEAD request gets no body."""
    await send({"type": "http.response.start", "status": int(response.status), "headers": response.headers})
    await send({"type": "http.response.body", "body": b"" if is_head else response.body})
