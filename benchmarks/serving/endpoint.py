"""What a request costs: our endpoint beside what others would write for the same ONNX file.

    python -m venv LIT && LIT/bin/pip install litserve==0.2.19 onnxruntime==1.31.1 numpy
    python benchmarks/serving/endpoint.py NAME [--rounds 3] [--requests 4000] [--starts 3] [--peers bentoml fastapi …]
        [--litserve LIT/bin/python]

NAME is a champion of BLOOMERY_HOME, such as `digits` after `make run`. Servers are asked over HTTP on loopback, single
held-out rows: ours the raw rows, which it checks, encodes, counts and logs; the others encoded ones. LitServe, which is
no dependency, has a Python of its own.

First each is started by itself, `--starts` times in turns: how long until the first right answer, what its processes
hold (pages that they share are counted once), and what a single client waits before and after a burst of 64
connections. Then all run at once and are asked in turns. The cost is the processor time of the server's whole process
tree, a request. ONNX Runtime in this process is the limit.
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


class Plan(NamedTuple):
    """How a server is started, and what it is asked."""

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
    tether: psutil.Process  # whose child the server is

    def processes(self) -> list[psutil.Process]:
        return self.tether.children(recursive=True)

    def seconds(self) -> float:
        """Of the processor, of the whole tree."""
        times = 0.0
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                times += sum(one.cpu_times()[:2])
        return times

    def held_mb(self) -> float:
        """Of memory, of the whole tree; a page that several share is counted once."""
        held = 0.0
        for one in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                held += one.memory_full_info().pss / 1e6
        return held


class Told(NamedTuple):
    cost_us: float
    per_second: float
    p50_ms: float
    p99_ms: float


class Begun(NamedTuple):
    """One start of a server that has the machine to itself."""

    seconds: float  # from its first process to its first right answer
    fresh_mb: float
    burst_mb: float
    fresh_ms: float  # the p50 of a single client
    burst_ms: float  # the same at once after the burst


def heads_of(path: str, bodies: list[bytes]) -> list[bytes]:
    """Whole requests with these bodies, as they go over the wire."""
    head = b"POST %s HTTP/1.1\r\nhost: here\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return [head % (path.encode(), len(body)) + body for body in bodies]


async def load(server: Server, connections: int, requests: int) -> Told:
    """Ask `requests` times over so many connections, each of which waits for its answer before it asks again."""
    heads = heads_of(server.path, server.bodies)
    taken: list[float] = []

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for place in range(number, requests, connections):
            began = time.perf_counter()
            writer.write(heads[place % len(heads)])
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                raise RuntimeError(f"{server.name}: {head!r}")
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            taken.append(time.perf_counter() - began)
        writer.close()

    before, began = server.seconds(), time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(connections)))
    wall = time.perf_counter() - began
    p50, p99 = np.percentile(taken, [50, 99]) * 1e3
    return Told((server.seconds() - before) / requests * 1e6, requests / wall, float(p50), float(p99))


@contextlib.contextmanager
def launched(plan: Plan) -> Iterator[Server]:
    with (settings().logs / f"serving-{plan.name}.log").open("ab") as stream:
        tether = start_tethered(plan.command, stream, plan.environment)
        try:
            yield Server(plan.name, plan.port, plan.path, plan.bodies, psutil.Process(tether.pid))
        finally:
            stop_tethered(tether)


@contextlib.contextmanager
def started(plan: Plan) -> Iterator[Server]:
    with launched(plan) as server:
        first_answer(server)
        asyncio.run(load(server, 1, 3))
        yield server


def first_answer(server: Server, timeout_s: float = 180) -> bytes:
    """The body of the first answer with status 200."""
    deadline = time.monotonic() + timeout_s
    with httpx.Client(trust_env=False, timeout=10) as client:
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                headers = {"content-type": "application/json"}
                url = f"http://127.0.0.1:{server.port}{server.path}"
                answered = client.post(url, content=server.bodies[0], headers=headers)
                if answered.status_code == 200:
                    return answered.content
                if answered.status_code < 500 and answered.status_code != 404:
                    raise SystemExit(f"{server.name}: {answered.status_code} {answered.text[:300]}")
            time.sleep(0.01)
    raise SystemExit(f"{server.name} does not answer; see {settings().logs}/serving-{server.name}.log")


def begun(plan: Plan, requests: int, right: tuple[np.ndarray, ...]) -> Begun:
    """Start it, ask it alone, in a burst, and alone again."""
    with launched(plan) as server:
        body = first_answer(server)
        ended = time.time()
        seconds = ended - min(one.create_time() for one in server.processes())
        numbers = np.array(numbers_in(json.loads(body)))
        if not any(np.allclose(numbers[-wanted.size :], wanted.ravel(), atol=1e-3) for wanted in right):
            raise SystemExit(f"{plan.name} answers wrongly: {body[:300]!r}")
        asyncio.run(load(server, 1, 100))
        fresh_mb = server.held_mb()
        fresh = asyncio.run(load(server, 1, requests))
        asyncio.run(load(server, BURST, max(requests, BURST * 20)))
        burst = asyncio.run(load(server, 1, requests))
        return Begun(seconds, fresh_mb, server.held_mb(), fresh.p50_ms, burst.p50_ms)


def numbers_in(document: Any) -> list[float]:
    """Those of an answer, in their order, wherever it has them."""
    if isinstance(document, dict):
        return [number for one in document.values() for number in numbers_in(one)]
    if isinstance(document, list):
        return [number for one in document for number in numbers_in(one)]
    is_number = isinstance(document, int | float) and not isinstance(document, bool)
    return [float(document)] if is_number else []


def limit(model: bytes, x: np.ndarray) -> float:
    """Microseconds for a row in this process."""
    runtime = create_session(model)
    for row in x:
        run_session(runtime, row[None])
    began = time.process_time()
    for _ in range(10):
        for row in x:
            run_session(runtime, row[None])
    return (time.process_time() - began) / (10 * len(x)) * 1e6


def bento_of(tag: str) -> Bento:
    """The record of the stage that packaged it."""
    for path in settings().home.glob("stages/package/*/record.json"):
        record = json.loads(path.read_text())["record"]
        if record["tag"] == tag:
            return Bento.model_validate(record)
    raise SystemExit(f"{tag} was not packaged in this state folder")


def plans(tag: str, bento: Bento, x: np.ndarray, model: Path, peers: dict[str, str]) -> list[Plan]:
    """Ours, and each of the peers with the Python that it runs in."""
    port = find_free_port()
    raw = [json.dumps({"rows": [row]}).encode() for row in request_rows(bento.chosen, NUM_ROWS)]
    # As `bloomery serve` starts it, with the log of predictions.
    logging = {**serve_environment(), "BLOOMERY_SERVE_LOG": str(model.parent / "predictions")}
    found = [Plan("ours", serve_command(tag, "127.0.0.1", port), port, "/predict", raw, logging)]
    more = {"PEER_MODEL": str(model), "PEER_SHAPE": ",".join(map(str, x.shape[1:]))}
    for name, python in peers.items():
        port = find_free_port()
        is_mlflow = name == "mlflow"
        rows = x if is_mlflow else x.reshape(len(x), -1)
        documents = [{"inputs": {"x": [row.tolist()]}} if is_mlflow else {"rows": [row.tolist()]} for row in rows]
        file, kind = ("by_litserve.py", []) if name == "litserve" else ("peers.py", [name])
        command = [python, str(Path(__file__).with_name(file)), *kind, str(port)]
        bodies = [json.dumps(document).encode() for document in documents]
        found.append(Plan(name, command, port, "/invocations" if is_mlflow else "/predict", bodies, more))
    return found


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("name")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--requests", type=int, default=4000)
    asked.add_argument("--starts", type=int, default=3)
    asked.add_argument("--peers", nargs="*", default=["bentoml", "fastapi", "fastapi-lean", "mlflow"])
    asked.add_argument("--litserve", help="a Python that has LitServe", metavar="PYTHON")
    chosen = asked.parse_args()
    apply_engine_environment()
    require_state_folder()
    tag = find_version(chosen.name).tags[BENTO]
    bento = bento_of(tag)
    artifacts = artifacts_folder(tag)
    manifest = json.loads((artifacts / "manifest.json").read_text())
    encoder = read_encoder(artifacts / "encoder.json")
    x = encode(encoder, read_held_out_rows(bento.chosen).slice(0, NUM_ROWS))
    model = decompress((artifacts / manifest["model"]).read_bytes())
    peers = dict.fromkeys(chosen.peers, sys.executable) | ({"litserve": chosen.litserve} if chosen.litserve else {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        all_plans = plans(tag, bento, x, path, peers)
        outputs = run_session(create_session(model), x[:1])
        report_starts(all_plans, chosen.starts, chosen.requests // 4, (outputs, predictions_from(encoder, outputs)))
        if chosen.rounds:
            with contextlib.ExitStack() as stack:
                servers = [stack.enter_context(started(plan)) for plan in all_plans]
                report(servers, chosen.rounds, chosen.requests, limit(model, x), len(os.sched_getaffinity(0)))


def report_starts(all_plans: list[Plan], starts: int, requests: int, right: tuple[np.ndarray, ...]) -> None:
    told: dict[str, list[Begun]] = {plan.name: [] for plan in all_plans}
    for _ in range(starts):
        for plan in all_plans:
            told[plan.name].append(begun(plan, requests, right))
    if not starts:
        return
    print(
        "| server | first right answer | memory, fresh | after a burst | one client's p50 | after a burst | / fresh |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, all_begun in told.items():
        middle = Begun(*(statistics.median(figures) for figures in zip(*all_begun, strict=True)))
        print(
            f"| {name} | {middle.seconds:.2f} s | {middle.fresh_mb:.0f} MB | {middle.burst_mb:.0f} MB | "
            f"{middle.fresh_ms:.2f} ms | {middle.burst_ms:.2f} ms | {middle.burst_ms / middle.fresh_ms:.2f} |",
            flush=True,
        )
    print()


def report(servers: list[Server], rounds: int, requests: int, least_us: float, num_cores: int) -> None:
    print(f"{num_cores} cores; ONNX Runtime in process: {least_us:.0f} µs a row\n")
    print("| connections | server | µs of the processor a request | / ours | requests a second | p50 | p99 |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for connections in CONNECTIONS:
        told: dict[str, list[Told]] = {server.name: [] for server in servers}
        for _ in range(rounds):
            for server in servers:
                asyncio.run(load(server, connections, connections * 10))
                told[server.name].append(asyncio.run(load(server, connections, requests)))
        ours: Any = None
        for name, all_told in told.items():
            middle = Told(*(statistics.median(figures) for figures in zip(*all_told, strict=True)))
            ours = ours or middle
            print(
                f"| {connections} | {name} | {middle.cost_us:.0f} | {middle.cost_us / ours.cost_us:.1f} | "
                f"{middle.per_second:.0f} | {middle.p50_ms:.2f} ms | {middle.p99_ms:.2f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    main()
