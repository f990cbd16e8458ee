"""Requests over real connections: the fast path gives the same responses as uvicorn's way."""

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

from bloomery.data_contracts.serving.api_keys import KEY_POLICY_VARIABLE, KEYS_FILE_VARIABLE
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.asgi.uvicorn_protocol import EndpointProtocol
from bloomery.deployments.endpoint.auth.middleware import KeyMetrics, require_keys
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from tests.deployments.endpoint.asgi.test_application import INVALID_BODIES, INVALID_STREAMS, ROW

BODY = json.dumps({"rows": [ROW]}).encode()
VARYING = {b"date", b"x-request-id"}


class Received(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


def request(body: bytes = BODY, *lines: str, version: str = "1.1", media_type: str = "application/json") -> bytes:
    head = f"POST /predict HTTP/{version}\r\nhost: here\r\ncontent-type: {media_type}\r\n"
    return "".join((head, *(f"{line}\r\n" for line in lines), f"content-length: {len(body)}\r\n\r\n")).encode() + body


def read(stream: Any) -> Received:
    status = int(stream.readline().split()[1])
    headers = {}
    while line := stream.readline().strip():
        name, _, value = line.partition(b": ")
        headers[name] = value
    return Received(status, headers, stream.read(int(headers[b"content-length"])))


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

    def send_whole(self, content: bytes) -> Received:
        self.socket.sendall(content)
        return read(self.stream)

    def send_in_two(self, content: bytes) -> Received:
        """Sends the body after the head, so that the request does not take the fast path."""
        head_size = content.index(b"\r\n\r\n") + 4
        self.socket.sendall(content[:head_size])
        time.sleep(0.02)
        self.socket.sendall(content[head_size:])
        return read(self.stream)


@pytest.fixture(scope="module")
def version(packaged: Callable[..., Path]) -> LoadedVersion:
    return LoadedVersion(packaged())


@pytest.fixture
def application(version: LoadedVersion, metrics: Metrics) -> Application:
    application = Application(Limits(body_bytes=20_000, rows=100, waiting=64), metrics)
    application.use_version(version)
    return application


@pytest.fixture
def listening(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[int, uvicorn.Server]]]:
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def listen(endpoint: Any) -> tuple[int, uvicorn.Server]:
        monkeypatch.setattr(EndpointProtocol, "endpoint", endpoint)
        # As BentoML configures uvicorn.
        config = uvicorn.Config(endpoint, http=EndpointProtocol, log_config=None, lifespan="off", server_header=False)
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        started.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return listener.getsockname()[1], server

    yield listen
    for server, thread in started:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def fast_path(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies of requests that took the fast path."""
    bodies: list[bytes] = []
    handle_predict = Application.handle_predict

    def record(self: Application, scope: Any, body: bytes, send_response: Any) -> None:
        bodies.append(body)
        handle_predict(self, scope, body, send_response)

    monkeypatch.setattr(Application, "handle_predict", record)
    return bodies


def are_same(first: Received, second: Received) -> bool:
    def stable_headers(received: Received) -> dict[bytes, bytes]:
        return {name: value for name, value in received.headers.items() if name not in VARYING}

    return (first.status, stable_headers(first), first.body) == (second.status, stable_headers(second), second.body)


def test_the_fast_path_and_uvicorn_give_the_same_response(application: Application, listening, fast_path) -> None:
    port, _ = listening(application)
    notified: list[tuple[str, int, int]] = []
    application.request_listeners.append(lambda tag, status, problems: notified.append((tag, status, len(problems))))
    cases = [(request(), 200)]
    for _, body, status, _ in INVALID_BODIES:
        cases.append((request(body if isinstance(body, bytes) else json.dumps(body).encode()), status))
    for _, stream, status, _ in INVALID_STREAMS:
        cases.append((request(stream, media_type="application/vnd.apache.arrow.stream"), status))
    cases += [
        (request(BODY, "x-request-id: order-7"), 200),
        (request(BODY, "content-encoding: gzip"), 415),
        (request(BODY, media_type="text/csv"), 415),
        (request(BODY, "accept: application/vnd.apache.arrow.stream"), 200),
    ]
    for content, status in cases:
        del notified[:], fast_path[:]
        with Client(port) as client:
            fast_response, slow_response = client.send_whole(content), client.send_in_two(content)
            assert fast_response.status == status, content
            assert are_same(fast_response, slow_response), (content, fast_response, slow_response)
        is_empty = content.endswith(b"\r\n\r\n")
        assert len(fast_path) == (2 if is_empty else 1)  # a request without a body is complete with its head
        assert notified[0] == notified[1]
    assert {b"x-request-id", b"date", b"x-model-version"} <= set(fast_response.headers)


def test_a_connection_is_kept_alive_or_closed_as_the_client_asks(application, listening, fast_path) -> None:
    port, _ = listening(application)
    with Client(port) as client:
        for _ in range(3):
            assert client.send_whole(request()).status == 200
        response = client.send_whole(request(BODY, "connection: close"))
        assert (response.status, response.headers[b"connection"], client.stream.read()) == (200, b"close", b"")
    with Client(port) as client:
        response = client.send_whole(request(version="1.0"))
        assert (response.status, response.headers[b"connection"], client.stream.read()) == (200, b"close", b"")
    assert len(fast_path) == 5


def test_pipelined_requests_are_served_in_order(application, listening) -> None:
    port, _ = listening(application)
    older = json.dumps({"rows": [{**ROW, "age": 90}]}).encode()
    invalid = b'{"rows": []}'
    with Client(port) as client:
        client.socket.sendall(b"".join(request(body) for body in (BODY, older, invalid, BODY, invalid, older)))
        responses = [read(client.stream) for _ in range(6)]
    assert [response.status for response in responses] == [200, 200, 422, 200, 422, 200]
    bodies = [response.body for response in responses if response.status == 200]
    labels = [json.loads(body)["predictions"][0]["label"] for body in bodies]
    assert labels == ["young", "old", "young", "old"]


def test_a_client_that_expects_100_continue_gets_it(application, listening, fast_path) -> None:
    port, _ = listening(application)
    content = request(BODY, "expect: 100-continue")
    head_size = content.index(b"\r\n\r\n") + 4
    with Client(port) as client:
        client.socket.sendall(content[:head_size])
        assert client.stream.readline() == b"HTTP/1.1 100 Continue\r\n"
        client.stream.readline()
        client.socket.sendall(content[head_size:])
        assert read(client.stream).status == 200
    assert not fast_path


def test_a_disconnected_client_leaves_no_connection_and_no_waiting_request(
    application, version, listening, monkeypatch
) -> None:
    port, server = listening(application)
    has_started, may_end = threading.Event(), threading.Event()
    predict = version.predict

    def slow(rows: Any) -> np.ndarray:
        has_started.set()
        may_end.wait(10)
        return predict(rows)

    monkeypatch.setattr(version, "predict", slow)
    monkeypatch.setattr(application._champion, "_seconds_per_row", 1.0)  # so the network runs in a thread
    with Client(port) as client:
        client.socket.sendall(request())
        assert has_started.wait(10)
    deadline = time.monotonic() + 10
    while server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    may_end.set()
    while application._num_waiting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (len(server.server_state.connections), application._num_waiting) == (0, 0)
    with Client(port) as client:
        assert client.send_whole(request()).status == 200


def test_a_server_that_ends_completes_pending_requests(application, version, listening, monkeypatch) -> None:
    port, server = listening(application)
    has_started, predict = threading.Event(), version.predict

    def slow(rows: Any) -> np.ndarray:
        has_started.set()
        time.sleep(0.5)
        return predict(rows)

    monkeypatch.setattr(version, "predict", slow)
    monkeypatch.setattr(application._champion, "_seconds_per_row", 1.0)
    with Client(port) as client:
        client.socket.sendall(request())
        assert has_started.wait(10)
        server.should_exit = True
        response = read(client.stream)
        assert (response.status, response.headers[b"connection"]) == (200, b"close")


def test_both_paths_reject_requests_without_a_valid_key_equally(application, listening, fast_path, tmp_path) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps({"keys": [{"name": "a", "sha256": "0" * 64, "created_at": "2026-01-01T00:00:00Z"}]}))
    notified: list[int] = []
    endpoint = require_keys(
        application,
        {KEY_POLICY_VARIABLE: "required", KEYS_FILE_VARIABLE: str(keys)},
        KeyMetrics(CollectorRegistry()),
        lambda status, _: notified.append(status),
    )
    port, _ = listening(endpoint)
    for lines in ((), ("x-api-key: invented",)):
        with Client(port) as client, Client(port) as slow_client:
            fast_response, slow_response = (
                client.send_whole(request(BODY, *lines)),
                slow_client.send_in_two(request(BODY, *lines)),
            )
            assert fast_response.status == 401
            assert are_same(fast_response, slow_response), (fast_response, slow_response)
            assert client.stream.read() == b""
    assert notified == [401] * 4
    assert not fast_path


def test_simultaneous_requests_of_several_connections_share_a_run(application, listening) -> None:
    port, _ = listening(application)
    runs: list[int] = []
    application.batch_listeners.append(lambda batch: runs.append(len(batch.request_sizes)))
    clients = [Client(port) for _ in range(8)]
    for _ in range(20):
        for client in clients:
            client.socket.sendall(request())
        assert [read(client.stream).status for client in clients] == [200] * 8
    for client in clients:
        client.__exit__()
    assert sum(runs) == 160
    assert max(runs) > 1


def test_the_outcome_log_counts_as_many_problems_as_the_response_has(application, listening) -> None:
    port, _ = listening(application)
    notified: list[int] = []
    application.request_listeners.append(lambda tag, status, problems: notified.append(len(problems)))
    content = request(json.dumps({"rows": [{**ROW, "age": -1}] * 60}).encode())
    with Client(port) as client:
        responses = [client.send_whole(content), client.send_in_two(content)]
    assert notified == [len(json.loads(response.body)["problems"]) for response in responses] == [20, 20]


@pytest.mark.parametrize("path", ["/", "/predict", "/readyz"])
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the Host header is missing"),
        (["host: a", "Host: a"], "the Host header is sent 2 times"),
        (["host: a b"], "the Host header is invalid"),
        (["host: a/b"], "the Host header is invalid"),
    ],
)
def test_a_request_without_one_valid_host_is_rejected(
    application: Application, listening, fast_path, path: str, lines: list[str], message: str
) -> None:
    port, _ = listening(application)
    content = request().replace(b"/predict", path.encode(), 1)
    content = content.replace(b"host: here\r\n", "".join(f"{line}\r\n" for line in lines).encode())
    with Client(port) as client:
        received = client.send_whole(content)
        assert client.stream.read() == b""  # the connection is closed
    assert (received.status, received.headers[b"connection"]) == (400, b"close")
    assert message in json.loads(received.body)["error"]
    assert not fast_path


@pytest.mark.parametrize("host", ["", "a", "a:", "a:80", "127.0.0.1:3000", "[::1]:80", "xn--bcher-kva.example", "a_b"])
def test_valid_hosts_are_accepted_and_http_1_0_needs_none(application: Application, listening, host: str) -> None:
    port, _ = listening(application)
    with Client(port) as client:
        assert client.send_whole(request().replace(b"here", host.encode())).status == 200
        assert client.send_whole(request(version="1.0").replace(b"host: here\r\n", b"")).status == 200


@pytest.mark.parametrize("path", ["/", "/predict", "/metrics"])
@pytest.mark.parametrize("num_pieces", [1, 2])
def test_a_head_beyond_the_limit_is_rejected_on_every_path(
    application: Application, listening, fast_path, path: str, num_pieces: int
) -> None:
    port, _ = listening(application)
    statuses = []
    for size in (65_000, 70_000):
        content = request(BODY, f"x-more: {'y' * size}").replace(b"/predict", path.encode(), 1)
        with Client(port) as client:
            step = len(content) // num_pieces + 1
            for start in range(0, len(content), step):
                client.socket.sendall(content[start : start + step])
                time.sleep(0.02)
            statuses.append(read(client.stream).status)
    assert statuses[0] != 431
    assert statuses[1] == 431


def test_a_pipelined_request_without_a_host_is_rejected_after_the_response_to_the_first(
    application: Application, listening
) -> None:
    port, _ = listening(application)
    with Client(port) as client:
        first = client.send_whole(request() + request().replace(b"host: here\r\n", b""))
        assert (first.status, read(client.stream).status) == (200, 400)
