"""A real bento on a public address: authentication, limits of connections, and versions with a broken signature."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bloomery.data_contracts.serving.api_keys import is_loopback
from bloomery.tasks.infrastructure.tethered_process import find_free_port
from tests.processes import responds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"BLOOMERY_SERVE_HEAD_SECONDS": "1", "BLOOMERY_SERVE_BODY_SECONDS": "1"}
# Each process of the server imports this first. It records every unpickling, and the id of the process.
RECORD_UNPICKLING = """
import os, sys
def record(event, arguments):
    if event == "pickle.find_class":
        with open(os.environ["UNPICKLING_LOG"], "a") as log:
            log.write(f"{arguments} in {sys.argv}\\n")
sys.addaudithook(record)
with open(os.environ["UNPICKLING_LOG"] + ".processes", "a") as processes:
    processes.write(f"{os.getpid()}\\n")
"""


def public_address() -> str:
    """Returns an address of this machine that is not a loopback address."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not is_loopback(address.address):
                return str(address.address)
    pytest.skip("this machine has no address but loopback")


@pytest.fixture(scope="module")
def home(finished_run: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished state folder, in which keys are created and a bento is damaged."""
    home = tmp_path_factory.mktemp("closed") / ".bloomery"
    shutil.copytree(finished_run[0], home, ignore=shutil.ignore_patterns("prefect", "logs"))
    return home


@pytest.fixture(scope="module")
def key(home: Path, bloomery: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    def call(*arguments: str) -> dict[str, Any]:
        completed = bloomery(home, "key", *arguments, "--json")
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return json.loads(completed.stdout)

    return call


@pytest.fixture(scope="module")
def served(
    home: Path,
    key: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    clean_environment: Callable[..., dict[str, str]],
) -> Iterator[tuple[str, int, Path]]:
    """The champion behind `bloomery serve --host 0.0.0.0`: a public address, its port, and the record of unpickling."""
    address, port = public_address(), find_free_port()
    key("create", "first")
    hook = tmp_path_factory.mktemp("hook")
    (hook / "sitecustomize.py").write_text(RECORD_UNPICKLING)
    unpickling_log = hook / "unpickling"
    path = os.pathsep.join(filter(None, (str(hook), os.environ.get("PYTHONPATH"))))
    log = (hook / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "bloomery.flows.cli", "serve", "digits", "--host", "0.0.0.0", "--port", str(port)],
        env=clean_environment(home, PYTHONPATH=path, UNPICKLING_LOG=str(unpickling_log), **SHORT),
        cwd=ROOT,
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + 90
        while not responds(f"http://{address}:{port}/readyz"):
            assert server.poll() is None, (hook / "log").read_text()
            assert time.monotonic() < deadline, (hook / "log").read_text()
            time.sleep(0.1)
        yield address, port, unpickling_log
    finally:
        server.terminate()
        server.wait(timeout=30)


def client(address: str, port: int, key: str = "") -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=f"http://{address}:{port}", headers=headers, trust_env=False, timeout=10)


def test_only_requests_with_a_valid_key_are_served(served, key) -> None:
    address, port, _ = served
    with client("127.0.0.1", port) as local, client(address, port) as stranger:
        example = local.get("/openapi.json").json()["paths"]["/predict"]["post"]["requestBody"]["content"][
            "application/json"
        ]["example"]
        assert local.post("/predict", json=example).status_code == 200
        for page in ("/info", "/docs", "/openapi.json", "/metrics", "/schema.json"):
            assert stranger.get(page).status_code == 401, page
        response = stranger.post("/predict", json=example, headers={"x-forwarded-for": "127.0.0.1"})
        assert (response.status_code, response.headers["www-authenticate"]) == (401, 'Bearer realm="bloomery"')
        assert [stranger.get(page).status_code for page in ("/livez", "/readyz")] == [200, 200]

    secret = key("create", "shop", "--rate", "2")["key"]
    time.sleep(1)
    with client(address, port, secret) as shop:
        responses = [shop.post("/predict", json=example) for _ in range(6)]
        assert [response.status_code for response in responses[:2]] == [200, 200]
        assert responses[-1].status_code == 429
        assert int(responses[-1].headers["retry-after"]) >= 1
        with client("127.0.0.1", port) as local:
            metrics = local.get("/metrics").text
        assert 'bloomery_key_requests_total{key="shop",outcome="admitted"} 2.0' in metrics
        assert 'bloomery_requests_total{status="401"}' in metrics
        key("revoke", "shop")
        time.sleep(1)
        assert shop.post("/predict", json=example).status_code == 403


def test_no_process_of_the_server_unpickles_anything(served) -> None:
    _, port, unpickling_log = served
    with client("127.0.0.1", port) as local:
        content = b"\x80\x04cos\nsystem\n."
        response = local.post("/predict", content=content, headers={"content-type": "application/vnd.bentoml+pickle"})
        assert response.status_code == 415
    assert not unpickling_log.exists(), unpickling_log.read_text()
    processes = unpickling_log.with_name("unpickling.processes").read_text().split()
    assert len(processes) >= 2  # the parent and its worker were recorded


def send_slowly(address: str, port: int, *pieces: bytes) -> tuple[str, float]:
    """Sends a piece every 0.3 s. Returns the response and the seconds until the connection ends."""
    start_time = time.monotonic()
    received = b""
    with socket.create_connection((address, port)) as connection:
        for piece in pieces:
            connection.sendall(piece)
            connection.settimeout(0.3)
            with contextlib.suppress(TimeoutError):
                received = connection.recv(4096)
                break  # sending more now would reset the connection before the response is read
        connection.settimeout(10)
        with contextlib.suppress(
            ConnectionResetError
        ):  # a piece arrived after the connection ended; the response has been read
            while more := connection.recv(4096):
                received += more
    return received.decode(), time.monotonic() - start_time


def test_slow_and_oversized_requests_are_ended(served) -> None:
    address, port, _ = served
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    assert send_slowly(address, port)[1] < 4  # sends nothing
    response, seconds = send_slowly(address, port, head, *[b"x-more: 1\r\n"] * 6)
    assert "408 Request Timeout" in response
    assert "the head was not complete within 1 s" in response
    assert seconds < 4
    response, seconds = send_slowly("127.0.0.1", port, head + b"content-length: 100\r\n\r\n", *[b" "] * 6)
    assert "the body was not complete within 1 s" in response
    assert send_slowly(address, port, *[b"\r\n"] * 6)[1] < 4  # endless empty lines
    response, _ = send_slowly(address, port, head, *[b"x-more: " + b"y" * 40_000] * 2)
    assert "431" in response


def serve_with_bentoml(home: Path, tag: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Runs `bentoml serve` with no environment variable but the store's folder."""
    environment = {**environment, "BENTOML_HOME": str(home / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    del environment["BLOOMERY_HOME"]
    command = [sys.executable, "-m", "bentoml", "serve", tag, "--port", str(find_free_port())]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)


def test_a_version_with_a_broken_signature_does_not_start(home, finished_run, bloomery, clean_environment) -> None:
    tag = finished_run[1]["bento"]["tag"]
    source = home / "bentoml" / "bentos" / tag.replace(":", "/") / "src"
    manifest = source / "artifacts" / "manifest.json"
    intact = manifest.read_bytes()
    try:
        manifest.write_bytes(intact.replace(b'"candidate"', b'"Candidate"'))
        completed = bloomery(home, "serve", "digits", "--port", str(find_free_port()), "--json")
        assert (completed.returncode, json.loads(completed.stdout)["error"]) == (1, "SignatureRefused")
        completed = serve_with_bentoml(home, tag, clean_environment(home))
        assert completed.returncode != 0
        assert "does not fit the manifest" in completed.stdout + completed.stderr
    finally:
        manifest.write_bytes(intact)
    (source / "bloomery" / "deployments" / "more.py").write_text("")
    try:
        completed = bloomery(home, "serve", "digits", "--port", str(find_free_port()), "--json")
        assert completed.returncode == 1
        assert "bloomery/deployments/more.py was not packaged with it" in json.loads(completed.stdout)["found"]
    finally:
        (source / "bloomery" / "deployments" / "more.py").unlink()
