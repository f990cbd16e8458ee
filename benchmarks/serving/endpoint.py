"""Measures the cost of a request: our endpoint and common servers of the same ONNX file.

    python -m venv LIT && LIT/bin/pip install litserve==0.2.19 onnxruntime==1.31.1 numpy
    python benchmarks/serving/endpoint.py NAME [--rounds 3] [--requests 4000] [--starts 3] [--peers bentoml fastapi …]
        [--litserve LIT/bin/python]

NAME is a champion of BLOOMERY_HOME, such as `digits` after `make run`. Each server receives single held-out rows over
HTTP on loopback: ours raw rows, which it validates, encodes, counts and logs; the others encoded rows. LitServe is not
a dependency and has a Python environment of its own.

First each server runs alone, `--starts` times in turns, to measure the time until the first correct response, the
memory of its processes (shared pages count once), and the latency of a single client before and after a burst of 64
connections. Then all run at once and are measured in turns. The cost of a request is the CPU time of the server's whole
process tree. ONNX Runtime in this process is the lower bound.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil

from bloomery.data_contracts.records.records import Bento
from bloomery.models.features.encoder import encode, read_encoder
from bloomery.models.inference.outputs import predictions_from
from bloomery.models.inference.runtime import create_session, run_session
from bloomery.models.onnx_storage.decoder import decompress
from bloomery.tasks.bentos.bento_server import serve_command, serve_environment
from bloomery.tasks.bentos.bento_store import artifacts_folder
from bloomery.tasks.evaluation.held_out import read_held_out_rows, request_rows
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.infrastructure.tethered_process import find_free_port, start_tethered, stop_tethered
from bloomery.tasks.registry.model_registry import BENTO, find_version

CONNECTIONS = (1, 16, 64)
BURST = 64  # connections
NUM_ROWS = 200


class ServerPlan(NamedTuple):
    """How a server is started, and the requests it receives."""

    name: str
    command: list[str]
    port: int
    path: str
    bodies: list[bytes]
    environment: dict[str, str]


class Server(NamedTuple):
    name: str
    port: int
    path: str
    bodies: list[bytes]
    parent: psutil.Process  # starts and ends the server

    def processes(self) -> list[psutil.Process]:
        return self.parent.children(recursive=True)

    def cpu_seconds(self) -> float:
        """Returns the CPU time of the process tree."""
        seconds = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                seconds += sum(process.cpu_times()[:2])
        return seconds

    def memory_mb(self) -> float:
        """Returns the memory of the process tree; a shared page counts once."""
        megabytes = 0.0
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                megabytes += process.memory_full_info().pss / 1e6
        return megabytes


class LoadStats(NamedTuple):
    cost_us: float
    per_second: float
    p50_ms: float
    p99_ms: float


class StartStats(NamedTuple):
    """One start of a server that runs alone."""

    seconds: float  # from its first process to its first correct response
    start_mb: float  # after the start
    burst_mb: float  # after the burst
    start_ms: float  # the p50 latency of a single client after the start
    burst_ms: float  # the same right after the burst


def build_requests(path: str, bodies: list[bytes]) -> list[bytes]:
    """Returns complete HTTP requests with these bodies."""
    head = b"POST %s HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return [head % (path.encode(), len(body)) + body for body in bodies]


async def send_load(server: Server, connections: int, requests: int) -> LoadStats:
    """Sends `requests` requests. Each connection waits for a response before its next request."""
    encoded_requests = build_requests(server.path, server.bodies)
    latencies: list[float] = []

    async def run_connection(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for index in range(number, requests, connections):
            start_time = time.perf_counter()
            writer.write(encoded_requests[index % len(encoded_requests)])
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise RuntimeError(f"{server.name}: {head!r}")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            latencies.append(time.perf_counter() - start_time)
        writer.close()

    start_cpu, start_time = server.cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(run_connection(number) for number in range(connections)))
    wall = time.perf_counter() - start_time
    p50, p99 = np.percentile(latencies, [50, 99]) * 1e3
    return LoadStats((server.cpu_seconds() - start_cpu) / requests * 1e6, requests / wall, float(p50), float(p99))


@contextlib.contextmanager
def launch(plan: ServerPlan) -> Iterator[Server]:
    with (settings().logs / f"serving-{plan.name}.log").open("ab") as stream:
        tether = start_tethered(plan.command, stream, plan.environment)
        try:
            yield Server(plan.name, plan.port, plan.path, plan.bodies, psutil.Process(tether.pid))
        finally:
            stop_tethered(tether)


@contextlib.contextmanager
def launch_and_warm_up(plan: ServerPlan) -> Iterator[Server]:
    with launch(plan) as server:
        wait_for_first_response(server)
        asyncio.run(send_load(server, 1, 3))
        yield server


def wait_for_first_response(server: Server, timeout_s: float = 180) -> bytes:
    """Returns the body of the first response with status 200."""
    deadline = time.monotonic() + timeout_s
    with httpx.Client(trust_env=False, timeout=10) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                headers = {"content-type": "application/json"}
                url = f"http://127.0.0.1:{server.port}{server.path}"
                response = client.post(url, content=server.bodies[0], headers=headers)
                if response.status_code == 200:
                    return response.content
                if response.status_code < 500 and response.status_code != 404:
                    raise SystemExit(f"{server.name}: {response.status_code} {response.text[:300]}")
            time.sleep(0.01)
    raise SystemExit(f"{server.name} does not respond; see {settings().logs}/serving-{server.name}.log")


def measure_start(plan: ServerPlan, requests: int, expected: tuple[np.ndarray, ...]) -> StartStats:
    """Starts the server, and measures a single client, a burst, and a single client again."""
    with launch(plan) as server:
        body = wait_for_first_response(server)
        response_time = time.time()
        seconds = response_time - min(process.create_time() for process in server.processes())
        numbers = np.array(collect_numbers(json.loads(body)))
        if not any(np.allclose(numbers[-outputs.size :], outputs.ravel(), atol=1e-3) for outputs in expected):
            raise SystemExit(f"{plan.name} gives wrong predictions: {body[:300]!r}")
        asyncio.run(send_load(server, 1, 100))
        start_mb = server.memory_mb()
        after_start = asyncio.run(send_load(server, 1, requests))
        asyncio.run(send_load(server, BURST, max(requests, BURST * 20)))
        after_burst = asyncio.run(send_load(server, 1, requests))
        return StartStats(seconds, start_mb, server.memory_mb(), after_start.p50_ms, after_burst.p50_ms)


def collect_numbers(document: Any) -> list[float]:
    """Returns all numbers of a JSON document in order, at any depth."""
    if isinstance(document, dict):
        return [number for value in document.values() for number in collect_numbers(value)]
    if isinstance(document, list):
        return [number for value in document for number in collect_numbers(value)]
    is_number = isinstance(document, int | float) and not isinstance(document, bool)
    return [float(document)] if is_number else []


def measure_in_process(model: bytes, x: np.ndarray) -> float:
    """Returns the CPU time of ONNX Runtime in this process, in microseconds per row."""
    runtime = create_session(model)
    for row in x:
        run_session(runtime, row[None])
    start_time = time.process_time()
    for _ in range(10):
        for row in x:
            run_session(runtime, row[None])
    return (time.process_time() - start_time) / (10 * len(x)) * 1e6


def read_bento_record(tag: str) -> Bento:
    """Returns the record of the stage that packaged the bento."""
    for path in settings().home.glob("stages/package/*/record.json"):
        record = json.loads(path.read_text())["record"]
        if record["tag"] == tag:
            return Bento.model_validate(record)
    raise SystemExit(f"{settings().home}/stages/package has no record of {tag}: package it in this state folder")


def make_plans(tag: str, bento: Bento, x: np.ndarray, model: Path, peers: dict[str, str]) -> list[ServerPlan]:
    """Returns the plans of our server and of each peer. `peers` has the Python of each."""
    port = find_free_port()
    raw_bodies = [json.dumps({"rows": [row]}).encode() for row in request_rows(bento.choice, NUM_ROWS)]
    # As `bloomery serve` starts it, with the prediction log.
    environment = {**serve_environment(), "BLOOMERY_SERVE_LOG": str(model.parent / "predictions")}
    plans = [ServerPlan("Bloomery", serve_command(tag, "127.0.0.1", port), port, "/predict", raw_bodies, environment)]
    peer_environment = {"PEER_MODEL": str(model), "PEER_SHAPE": ",".join(map(str, x.shape[1:]))}
    for name, python in peers.items():
        port = find_free_port()
        is_mlflow = name == "mlflow"
        rows = x if is_mlflow else x.reshape(len(x), -1)
        documents = [{"inputs": {"x": [row.tolist()]}} if is_mlflow else {"rows": [row.tolist()]} for row in rows]
        file, kind = ("by_litserve.py", []) if name == "litserve" else ("peers.py", [name])
        command = [python, str(Path(__file__).with_name(file)), *kind, str(port)]
        bodies = [json.dumps(document).encode() for document in documents]
        plans.append(
            ServerPlan(name, command, port, "/invocations" if is_mlflow else "/predict", bodies, peer_environment)
        )
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a recipe with a champion in BLOOMERY_HOME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=4000, help="requests per round and number of connections")
    parser.add_argument("--starts", type=int, default=3, help="starts of each server")
    parser.add_argument("--peers", nargs="*", default=["bentoml", "fastapi", "fastapi-lean", "mlflow"])
    parser.add_argument("--litserve", help="a Python that has LitServe", metavar="PYTHON")
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    tag = find_version(options.name).tags[BENTO]
    bento = read_bento_record(tag)
    artifacts = artifacts_folder(tag)
    manifest = json.loads((artifacts / "manifest.json").read_text())
    encoder = read_encoder(artifacts / "encoder.json")
    x = encode(encoder, read_held_out_rows(bento.choice).slice(0, NUM_ROWS))
    model = decompress((artifacts / manifest["model"]).read_bytes())
    peers = dict.fromkeys(options.peers, sys.executable) | ({"litserve": options.litserve} if options.litserve else {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        plans = make_plans(tag, bento, x, path, peers)
        outputs = run_session(create_session(model), x[:1])
        report_starts(plans, options.starts, options.requests // 4, (outputs, predictions_from(encoder, outputs)))
        if options.rounds:
            with contextlib.ExitStack() as stack:
                servers = [stack.enter_context(launch_and_warm_up(plan)) for plan in plans]
                report(
                    servers,
                    options.rounds,
                    options.requests,
                    measure_in_process(model, x),
                    len(os.sched_getaffinity(0)),
                )


def report_starts(plans: list[ServerPlan], starts: int, requests: int, expected: tuple[np.ndarray, ...]) -> None:
    results: dict[str, list[StartStats]] = {plan.name: [] for plan in plans}
    for _ in range(starts):
        for plan in plans:
            results[plan.name].append(measure_start(plan, requests, expected))
    if not starts:
        return
    print(
        "| server | first correct response | memory after start | after burst | one client: p50 | after burst | ratio |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, all_starts in results.items():
        median = StartStats(*(statistics.median(values) for values in zip(*all_starts, strict=True)))
        print(
            f"| {name} | {median.seconds:.2f} s | {median.start_mb:.0f} MB | {median.burst_mb:.0f} MB | "
            f"{median.start_ms:.2f} ms | {median.burst_ms:.2f} ms | {median.burst_ms / median.start_ms:.2f} |",
            flush=True,
        )
    print()


def report(servers: list[Server], rounds: int, requests: int, lower_bound_us: float, num_cores: int) -> None:
    print(f"{num_cores} cores; ONNX Runtime in this process: {lower_bound_us:.0f} µs per row\n")
    print("| connections | server | CPU µs per request | / Bloomery | requests per second | p50 | p99 |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for connections in CONNECTIONS:
        results: dict[str, list[LoadStats]] = {server.name: [] for server in servers}
        for _ in range(rounds):
            for server in servers:
                asyncio.run(send_load(server, connections, connections * 10))
                results[server.name].append(asyncio.run(send_load(server, connections, requests)))
        baseline_us: float | None = None
        for name, all_loads in results.items():
            median = LoadStats(*(statistics.median(values) for values in zip(*all_loads, strict=True)))
            baseline_us = baseline_us or median.cost_us
            print(
                f"| {connections} | {name} | {median.cost_us:.0f} | {median.cost_us / baseline_us:.1f} | "
                f"{median.per_second:.0f} | {median.p50_ms:.2f} ms | {median.p99_ms:.2f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
