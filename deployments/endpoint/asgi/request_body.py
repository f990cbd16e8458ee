"""Reads the body of an ASGI request within limits of size and time, and its media type."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus

from bloomery.data_contracts.requests.arrow_rows import ARROW_MEDIA_TYPE as ARROW
from bloomery.deployments.endpoint.asgi.eager_task import EagerTask
from bloomery.deployments.endpoint.asgi.multipart import MULTIPART
from bloomery.deployments.endpoint.http.asgi_types import Message, Receive
from bloomery.deployments.endpoint.http.errors import HTTPError, body_too_large, unsupported_media_type
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.http.responses import JSON

_JSON = JSON.encode()


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, limits: Limits) -> bytes:
    """Reads and returns the complete body.

    Raises:
        HTTPError: it is too large or takes too long.
        ClientDisconnected: the client has disconnected.
    """
    max_bytes = limits.body_bytes
    content_length = headers.get(b"content-length", b"0")
    if content_length.isdigit() and int(content_length) > max_bytes:
        raise body_too_large(max_bytes, f"{int(content_length):,} bytes")
    first_message = EagerTask(receive())
    message = first_message.value
    if message is None or message.get("more_body"):
        message, body = await _read_chunks(first_message, receive, limits)
    else:
        body = message.get("body", b"")
    if message["type"] == "http.disconnect":
        raise ClientDisconnected
    if len(body) > max_bytes:
        raise body_too_large(max_bytes, f"{len(body):,} bytes")
    return body


async def _read_chunks(first_message: EagerTask[Message], receive: Receive, limits: Limits) -> tuple[Message, bytes]:
    """Reads the rest of an incomplete request. Returns its last message and its body."""
    max_bytes, timeout_s = limits.body_bytes, limits.body_seconds
    try:
        async with asyncio.timeout(timeout_s):
            message = first_message.value or await first_message
            chunks = [message.get("body", b"")]
            num_bytes = len(chunks[0])
            while message.get("more_body"):
                message = await receive()
                chunks.append(message.get("body", b""))
                num_bytes += len(chunks[-1])
                if num_bytes > max_bytes:
                    raise body_too_large(max_bytes, f"more than {max_bytes:,} bytes")
            return message, b"".join(chunks)
    except TimeoutError:
        raise HTTPError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body was not complete within {timeout_s:g} s",
            headers={"connection": "close"},
        ) from None


def read_media_type(headers: Mapping[bytes, bytes], *, takes_files: bool) -> str:
    """Returns the media type: JSON, Arrow, or a form if the version takes files.

    Raises:
        HTTPError: the type is another one, or the body is compressed.
    """
    if headers.get(b"content-encoding", b"identity") != b"identity":
        encoding = headers[b"content-encoding"].decode("latin-1")
        raise HTTPError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"the body is encoded as {encoding}; send it without an encoding"
        )
    content_type = headers.get(b"content-type", b"")
    if content_type == _JSON:  # as nearly all clients send it
        return JSON
    media_type = content_type.decode("latin-1").split(";")[0].strip().lower()
    supported = (JSON, ARROW, MULTIPART) if takes_files else (JSON, ARROW)
    if media_type not in supported:
        raise unsupported_media_type(media_type, supported)
    return media_type
