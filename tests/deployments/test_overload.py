"""A real endpoint above its limit of waiting requests, and one that is stopped while it serves."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from bloomery.tasks.infrastructure.tethered_process import find_free_port, require_free_port
from tests.processes import responds

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = 64


@pytest.fixture(scope="module")
def home(finished_run: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the finished state folder, in which a bento is damaged."""
    home = tmp_path_factory.mktemp("overload") / ".bloomery"
    shutil.copytree(finished_run[0], home, ignore=shutil.ignore_patterns("prefect", "logs"))
    return home


@pytest.fixture
def served(
    home: Path, tmp_path: Path, clean_environment: Callable[..., dict[str, str]]
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The champion behind `bloomery serve` with a limit of two waiting requests, and its port."""
    port = find_free_port()
    log = (tmp_path / "log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "bloomery.flows.cli", "serve", "digits", "--port", str(port)],
        env=clean_environment(home, BLOOMERY_SERVE_WAITING="2"),
        cwd=ROOT,
        stdout=log,
        stderr=log,
    )
    try:
        deadline = time.monotonic() + 90
        while not responds(f"http://127.0.0.1:{port}/readyz"):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield server, port
    finally:
        if server.poll() is None:
            server.kill()
        server.wait(timeout=30)


def read_example(port: int) -> tuple[bytes, list[dict[str, Any]]]:
    """Returns the example request of the OpenAPI document, and its predictions without load."""
    url = f"http://127.0.0.1:{port}"
    page = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    body = page["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["example"]
    return json.dumps(body).encode(), httpx.post(f"{url}/predict", json=body, trust_env=False).json()["predictions"]


async def send_load(port: int, body: bytes, num_each: int) -> list[httpx.Response]:
    """Returns the responses to `CONNECTIONS` concurrent clients, each of which sends `num_each` requests."""
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    url, headers = f"http://127.0.0.1:{port}/predict", {"content-type": "application/json"}
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=30) as client:

        async def send_requests() -> list[httpx.Response]:
            return [await client.post(url, content=body, headers=headers) for _ in range(num_each)]

        client_responses = await asyncio.gather(*(send_requests() for _ in range(CONNECTIONS)))
        return [response for responses in client_responses for response in responses]


def test_excess_requests_get_503_and_sigterm_completes_pending_ones(
    served: tuple[subprocess.Popen[bytes], int],
) -> None:
    server, port = served
    body, expected = read_example(port)
    responses = asyncio.run(send_load(port, body, num_each=10))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 503}, statuses
    for response in responses:
        if response.status_code == 200:
            assert response.json()["predictions"] == expected
        else:
            assert int(response.headers["retry-after"]) >= 1
            assert response.json()["error"]
    assert responds(f"http://127.0.0.1:{port}/readyz")  # the load is over

    explanations: list[httpx.Response] = []
    url, headers = f"http://127.0.0.1:{port}/explain", {"content-type": "application/json"}
    explain_thread = threading.Thread(
        target=lambda: explanations.append(
            httpx.post(url, content=body, headers=headers, trust_env=False, timeout=60)  # includes the import of shap
        )
    )
    with socket.create_connection(("127.0.0.1", port)) as connection:
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        connection.sendall(head % len(body) + body[:50])
        explain_thread.start()
        time.sleep(0.5)
        server.send_signal(signal.SIGTERM)
        time.sleep(1)
        connection.sendall(body[50:])
        connection.settimeout(30)
        received = b""
        while more := connection.recv(65_536):
            received += more
    explain_thread.join(timeout=60)
    assert received.startswith(b"HTTP/1.1 200"), received[:200]
    assert json.loads(received.partition(b"\r\n\r\n")[2])["predictions"] == expected
    assert [response.status_code for response in explanations] == [200]
    assert server.wait(timeout=30) == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


def test_a_killed_server_leaves_no_worker_and_a_free_port(
    served: tuple[subprocess.Popen[bytes], int],
) -> None:
    server, port = served
    workers = psutil.Process(server.pid).children(recursive=True)
    assert workers
    server.kill()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    require_free_port("127.0.0.1", port)


def test_a_version_that_fails_its_self_test_does_not_start(
    home: Path,
    finished_run: tuple[Path, dict[str, Any]],
    clean_environment: Callable[..., dict[str, str]],
    tmp_path: Path,
) -> None:
    """The version is signed and complete, so only its self-test fails. No worker is restarted repeatedly."""
    tag = finished_run[1]["bento"]["tag"]
    artifacts = home / "bentoml" / "bentos" / tag.replace(":", "/") / "src" / "artifacts"
    code = (
        "import json, sys\n"
        "from pathlib import Path\n"
        "from bloomery.data_contracts.documents.digests import digest_of_file\n"
        "from bloomery.tasks.security.signing_key import sign_manifest\n"
        "artifacts = Path(sys.argv[1])\n"
        "examples = json.loads((artifacts / 'examples.json').read_text())\n"
        "examples[0]['prediction']['label'] = 9 - examples[0]['prediction']['label']\n"
        "(artifacts / 'examples.json').write_text(json.dumps(examples))\n"
        "manifest = json.loads((artifacts / 'manifest.json').read_text())\n"
        "manifest['files']['examples.json'] = digest_of_file(artifacts / 'examples.json')\n"
        "(artifacts / 'manifest.json').write_text(json.dumps(manifest))\n"
        "sign_manifest(artifacts)\n"
    )
    environment = clean_environment(home)
    subprocess.run([sys.executable, "-c", code, artifacts], env=environment, cwd=ROOT, check=True)
    command = [sys.executable, "-m", "bloomery.flows.cli", "serve", "digits", "--port", str(find_free_port())]
    completed = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90)
    assert completed.returncode != 0
    assert "the prediction for a held-out row is" in completed.stdout + completed.stderr
