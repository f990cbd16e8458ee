"""Requests over real connections: those that come whole go a short way, and are told what the others are told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import uvicorn
from prometheus_client import CollectorRegistry

from bloomery.data_contracts.serving.api_keys import DEMANDED, KEYS_FILE
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.asgi.uvicorn_protocol import Connection
from bloomery.deployments.endpoint.auth.middleware import Usage, doors
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.deployments.endpoint.telemetry.metrics import Measures
from tests.deployments.endpoint.asgi.test_application import BAD_STREAMS, REFUSED, ROW

BODY = json.dumps({"rows": [ROW]}).encode()
VARYING = {b"date", b"x-request-id"}


class Got(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    payload: bytes


def request(body: bytes = BODY, *lines: str, version: str = "1.1", media_type: str = "application/json") -> bytes:
    head = f"POST /predict HTTP/{version}\r\nhost: here\r\ncontent-type: {media_type}\r\n"
    return "".join((head, *(f"{line}\r\n" for line in lines), f"content-length: {len(body)}\r\n\r\n")).encode() + body


def read(stream: Any) -> Got:
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.partition(b": ")
        headers[name] = value
    return Got(status, headers, stream.read(int(headers[b"content-length"])))


class Client:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.stream = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def whole(self, sent: bytes) -> Got:
        self.socket.sendall(sent)
        return read(self.stream)

    def in_two(self, sent: bytes) -> Got:
        """The body after its head, so that it goes uvicorn's way."""
        cut = sent.index(b"\r\n\r\n") + 4
        self.socket.sendall(sent[:cut])
        time.sleep(0.02)
        self.socket.sendall(sent[cut:])
        return read(self.stream)


@pytest.fixture(scope="module")
def version(packaged: Callable[..., Path]) -> Version:
    return Version(packaged())


@pytest.fixture
def application(version: Version, measures: Measures) -> Application:
    application = Application(Limits(body_bytes=20_000, rows=100, waiting=64), measures)
    application.use(version)
    return application


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, uvicorn.Server]]]:
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def listen(front: Any) -> tuple[int, uvicorn.Server]:
        monkeypatch.setattr(Connection, "front", front)
        # As BentoML configures it.
        config = uvicorn.Config(front, http=Connection, log_config=None, lifespan="off", server_header=False)
        server = uvicorn.Server(config)
        here = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [here]})
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return here.getsockname()[1], server

    yield listen
    for server, thread in started:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies of requests that went the short way."""
    seen: list[bytes] = []
    answer = Application.answer

    def noted(self: Application, scope: Any, body: bytes, tell: Any) -> None:
        seen.append(body)
        answer(self, scope, body, tell)

    monkeypatch.setattr(Application, "answer", noted)
    return seen


def same(one: Got, other: Got) -> bool:
    def kept(got: Got) -> dict[bytes, bytes]:
        return {name: value for name, value in got.headers.items() if name not in VARYING}

    return (one.status, kept(one), one.payload) == (other.status, kept(other), other.payload)


def test_both_ways_say_the_same(application: Application, listening, short) -> None:
    port, _ = listening(application)
    told_of: list[tuple[str, int, int]] = []
    application.on_asked.append(lambda tag, status, problems: told_of.append((tag, status, len(problems))))
    cases = [(request(), 200)]
    for _, body, status, _ in REFUSED:
        cases.append((request(body if isinstance(body, bytes) else json.dumps(body).encode()), status))
    for _, stream, status, _ in BAD_STREAMS:
        cases.append((request(stream, media_type="application/vnd.apache.arrow.stream"), status))
    cases += [
        (request(BODY, "x-request-id: order-7"), 200),
        (request(BODY, "content-encoding: gzip"), 415),
        (request(BODY, media_type="text/csv"), 415),
        (request(BODY, "accept: application/vnd.apache.arrow.stream"), 200),
    ]
    for sent, status in cases:
        del told_of[:], short[:]
        with Client(port) as client:
            whole, in_two = client.whole(sent), client.in_two(sent)
            assert whole.status == status, sent
            assert same(whole, in_two), (sent, whole, in_two)
        is_empty = sent.endswith(b"\r\n\r\n")
        assert len(short) == (2 if is_empty else 1)  # a request without a body is whole with its head
        assert told_of[0] == told_of[1]
    assert {b"x-request-id", b"date", b"x-model-version"} <= set(whole.headers)


def test_a_connection_stays_for_the_next_request_or_ends_as_the_client_says(application, listening, short) -> None:
    port, _ = listening(application)
    with Client(port) as client:
        for _ in range(3):
            assert client.whole(request()).status == 200
        told = client.whole(request(BODY, "connection: close"))
        assert (told.status, told.headers[b"connection"], client.stream.read()) == (200, b"close", b"")
    with Client(port) as client:
        told = client.whole(request(version="1.0"))
        assert (told.status, told.headers[b"connection"], client.stream.read()) == (200, b"close", b"")
    assert len(short) == 5


def test_requests_behind_one_another_are_answered_in_their_order(application, listening) -> None:
    port, _ = listening(application)
    older = json.dumps({"rows": [{**ROW, "age": 90}]}).encode()
    bad = b'{"rows": []}'
    with Client(port) as client:
        client.socket.sendall(b"".join(request(body) for body in (BODY, older, bad, BODY, bad, older)))
        told = [read(client.stream) for _ in range(6)]
    assert [one.status for one in told] == [200, 200, 422, 200, 422, 200]
    labels = [json.loads(one.payload)["predictions"][0]["label"] for one in told if one.status == 200]
    assert labels == ["young", "old", "young", "old"]


def test_a_client_that_waits_to_be_told_to_send_its_body_is_told(application, listening, short) -> None:
    port, _ = listening(application)
    sent = request(BODY, "expect: 100-continue")
    cut = sent.index(b"\r\n\r\n") + 4
    with Client(port) as client:
        client.socket.sendall(sent[:cut])
        assert client.stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        client.stream.readline()
        client.socket.sendall(sent[cut:])
        assert read(client.stream).status == 200
    assert not short


def test_a_client_that_has_gone_leaves_nothing_behind(application, version, listening, monkeypatch) -> None:
    port, server = listening(application)
    has_begun, may_end = threading.Event(), threading.Event()
    answers = version.answers

    def slow(rows: Any) -> np.ndarray:
        has_begun.set()
        may_end.wait(10)
        return answers(rows)

    monkeypatch.setattr(version, "answers", slow)
    monkeypatch.setattr(application._in_use, "_seconds_a_row", 1.0)  # so a thread runs the network
    with Client(port) as client:
        client.socket.sendall(request())
        assert has_begun.wait(10)
    deadline = time.monotonic() + 10
    while server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    may_end.set()
    while application._num_waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(server.server_state.connections), application._num_waiting) == (0, 0)
    with Client(port) as client:
        assert client.whole(request()).status == 200


def test_a_server_that_ends_answers_what_has_come(application, version, listening, monkeypatch) -> None:
    port, server = listening(application)
    has_begun, answers = threading.Event(), version.answers

    def slow(rows: Any) -> np.ndarray:
        has_begun.set()
        time.sleep(0.5)
        return answers(rows)

    monkeypatch.setattr(version, "answers", slow)
    monkeypatch.setattr(application._in_use, "_seconds_a_row", 1.0)
    with Client(port) as client:
        client.socket.sendall(request())
        assert has_begun.wait(10)
        server.should_exit = True
        told = read(client.stream)
        assert (told.status, told.headers[b"connection"]) == (200, b"close")


def test_strangers_are_refused_both_ways_alike(application, listening, short, tmp_path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "made": "2026-01-01T00:00:00Z"}]}))
    told_of: list[int] = []
    front = doors(
        application,
        {DEMANDED: "required", KEYS_FILE: str(keys)},
        Usage(CollectorRegistry()),
        lambda status, _: told_of.append(status),
    )
    port, _ = listening(front)
    for lines in ((), ("x-api-key: invented",)):
        with Client(port) as client, Client(port) as other:
            whole, in_two = client.whole(request(BODY, *lines)), other.in_two(request(BODY, *lines))
            assert whole.status == 401
            assert same(whole, in_two), (whole, in_two)
            assert client.stream.read() == b""
    assert told_of == [401] * 4
    assert not short


def test_connections_that_ask_at_once_are_one_run(application, listening) -> None:
    port, _ = listening(application)
    runs: list[int] = []
    application.on_answered.append(lambda answered: runs.append(len(answered.sizes)))
    clients = [Client(port) for _ in range(8)]
    for _ in range(20):
        for client in clients:
            client.socket.sendall(request())
        assert [read(client.stream).status for client in clients] == [200] * 8
    for client in clients:
        client.__exit__()
    assert sum(runs) == 160
    assert max(runs) > 1


def test_of_many_broken_rows_as_many_are_counted_as_the_client_is_told_of(application, listening) -> None:
    port, _ = listening(application)
    told_of: list[int] = []
    application.on_asked.append(lambda tag, status, problems: told_of.append(len(problems)))
    sent = request(json.dumps({"rows": [{**ROW, "age": -1}] * 60}).encode())
    with Client(port) as client:
        told = [client.whole(sent), client.in_two(sent)]
    assert told_of == [len(json.loads(one.payload)["problems"]) for one in told] == [20, 20]
