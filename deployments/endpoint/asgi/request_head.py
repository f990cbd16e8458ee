"""Checks of a request's head that uvicorn leaves out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from bloomery.deployments.endpoint.http.asgi_types import Headers, Receive, Scope, Send
from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.http.responses import error_response, write_response

MAX_HEAD_BYTES = 65_536
MAX_URL_BYTES = 65_535  # that httptools can parse
_HOST = re.compile(rb"(\[[0-9A-Fa-f:.v]+\]|[\w.~!$&'()*+,;=%-]*)(:\d*)?", re.ASCII)  # RFC 3986: host [":" port]


def head_too_large() -> HTTPError:
    return HTTPError(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the head has more than {MAX_HEAD_BYTES:,} bytes")


def find_host_problem(scope: Mapping[str, Any]) -> HTTPError | None:
    """Returns the error of a request without exactly one valid Host header, which HTTP/1.1 requires.

    Source: RFC 9112, section 3.2.
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) == 1:
        return None if _HOST.fullmatch(hosts[0]) else _bad_host("invalid")
    if not hosts:
        return None if scope["http_version"] == "1.0" else _bad_host("missing")
    return _bad_host(f"sent {len(hosts)} times")


def _bad_host(state: str) -> HTTPError:
    error = f"the Host header is {state}; HTTP/1.1 requires one, `Host: name[:port]`"
    return HTTPError(HTTPStatus.BAD_REQUEST, error)


def count_head_bytes(scope: Mapping[str, Any]) -> int:
    """Returns the number of bytes of a parsed head, without optional white space."""
    request_line = len(scope["method"]) + len(scope["raw_path"]) + len(scope["query_string"]) + len("  HTTP/1.1\r\n")
    return request_line + sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])


def without_upgrade(method: bytes, url: bytes, http_version: str, headers: Headers) -> bytes:
    """Returns the head of a request that asks for no other protocol."""
    lines = [b"%b %b HTTP/%b" % (method, url, http_version.encode())]
    for name, value in headers:
        if name == b"connection":
            value = b", ".join(token for token in re.split(rb"[\s,]+", value) if token.lower() != b"upgrade")
        if name != b"upgrade" and (name != b"connection" or value):
            lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


class Rejection:
    """An ASGI application that gives one error response, after which the connection closes."""

    def __init__(self, error: HTTPError) -> None:
        self._response = error_response(error, [(b"connection", b"close")])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await write_response(self._response, send, is_head=scope["method"] == "HEAD")
