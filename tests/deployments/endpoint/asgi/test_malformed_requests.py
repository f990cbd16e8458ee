"""Bytes that are no request, lengths that are false, and requests to change the protocol, over real connections."""

from __future__ import annotations

import json
import socket

import pytest

from bloomery.deployments.endpoint.asgi.application import Application
from tests.deployments.endpoint.asgi.test_uvicorn_protocol import (  # noqa: F401
    BODY,
    Client,
    application,
    listening,
    read,
    request,
    version,
)

GET = "GET / HTTP/1.1\r\nhost: here\r\n"
CHUNKED = "POST /predict HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # HTTP/2
        b"NONE / HTTP/1.1\r\nhost: here\r\n\r\n",
        f"{GET}no colon\r\n\r\n".encode(),
        f"{GET}host : here\r\n\r\n".encode(),
        f"{GET}a: \0\r\n\r\n".encode(),
        request(b"", "content-length: 5"),
        request(b"", "transfer-encoding: chunked"),
        f"{CHUNKED}\r\nzz\r\n".encode(),
        f"{CHUNKED.replace('chunked', 'gzip')}\r\n".encode(),
        f"{GET}content-length: -1\r\n\r\n".encode(),
        f"{GET}content-length: {'9' * 30}\r\n\r\n".encode(),
    ],
)
def test_what_is_no_request_gets_a_json_error(application: Application, listening, content: bytes) -> None:  # noqa: F811
    port, _ = listening(application)
    with Client(port) as client:
        response = client.send_whole(content)
        assert (response.status, response.headers[b"content-type"]) == (400, b"application/json")
        assert "not valid HTTP/1.1" in json.loads(response.body)["error"]
        assert client.socket.recv(1) == b""  # closed


def test_an_address_that_is_too_long_is_a_head_that_is_too_large(application: Application, listening) -> None:  # noqa: F811
    port, _ = listening(application)
    for size, status in ((60_000, 404), (65_600, 431)):
        with Client(port) as client:
            response = client.send_whole(f"GET /{'a' * size} HTTP/1.1\r\nhost: here\r\n\r\n".encode())
            assert response.status == status, size


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_a_request_to_change_the_protocol_is_served_in_this_one(
    application: Application,  # noqa: F811
    listening,  # noqa: F811
    protocol: str,
) -> None:
    """A WebSocket would take over the connection, without time limits."""
    port, _ = listening(application)
    upgrade = [f"upgrade: {protocol}", "connection: upgrade", "sec-websocket-version: 13", "sec-websocket-key: a2V5"]
    with Client(port) as client:
        for _ in range(2):
            assert client.send_whole(request(BODY, *upgrade)).status == 200
            assert client.send_in_two(request(BODY, *upgrade)).status == 200
            page = client.send_whole("".join(f"{line}\r\n" for line in (GET.strip(), *upgrade, "")).encode())
            assert page.status == 307


def test_chunks_are_one_body_and_a_body_may_be_shorter_than_it_says(application: Application, listening) -> None:  # noqa: F811
    port, _ = listening(application)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(BODY[at : at + 7]), BODY[at : at + 7]) for at in range(0, len(BODY), 7))
    with Client(port) as client:
        assert client.send_whole(f"{CHUNKED}\r\n".encode() + chunks + b"0\r\n\r\n").status == 200
    with Client(port) as client:
        client.socket.sendall(request().replace(b"content-length: ", b"content-length: 9"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.stream.read() == b""
    with Client(port) as client:
        assert client.send_whole(request()).status == 200
