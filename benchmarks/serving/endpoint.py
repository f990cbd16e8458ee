"""What a request costs: our endpoint beside what others would write for the same ONNX file.

    python benchmarks/serving/endpoint.py NAME [--rounds 3] [--requests 4000] [--peers bentoml fastapi …]

NAME is a champion of BLOOMERY_HOME, such as `digits` after `make run`. All servers run at once and are asked in turns,
over HTTP on loopback, single held-out rows: ours the raw rows, which it checks and encodes; the others encoded ones.
The cost is the processor time of the server's whole process tree, a request. ONNX Runtime in this process is the limit.
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

import numpy as np
import psutil

from data_contracts.records import Bento
from models.compression.decoding import opened
from models.encoder import encode, read_encoder
from models.runtime import answer, session
from tasks.held_out import held_out_rows, rows_as_sent
from tasks.package import artifacts_of
from tasks.processes import free_port, start, stop
from tasks.registry import BENTO, version_of
from tasks.serving import serve_command
from tasks.settings import enter, settings

CONNECTIONS = (1, 16, 64)
NUM_ROWS = 200


class Server(NamedTuple):
    name: str
    port: int
    path: str
    bodies: list[bytes]
    process: psutil.Process

    def seconds(self) -> float:
        """Of the processor, of the whole tree."""
        times = 0.0
        for one in (self.process, *self.process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                times += sum(one.cpu_times()[:2])
        return times


class Told(NamedTuple):
    cost_us: float
    per_second: float
    p50_ms: float
    p99_ms: float


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
def started(name: str, command: list[str], port: int, path: str, bodies: list[bytes], **more: str) -> Iterator[Server]:
    log = settings().logs / f"serving-{name}.log"
    with log.open("ab") as stream:
        tether = start(command, stream, more)
        try:
            server = Server(name, port, path, bodies, psutil.Process(tether.pid))
            for _ in range(120):
                try:
                    asyncio.run(load(server, 1, 3))
                    break
                except (OSError, asyncio.IncompleteReadError, RuntimeError):
                    time.sleep(1)
            else:
                raise SystemExit(f"{name} does not answer; see {log}")
            yield server
        finally:
            stop(tether)


def limit(model: bytes, x: np.ndarray) -> float:
    """Microseconds for a row in this process."""
    runtime = session(model)
    for row in x:
        answer(runtime, row[None])
    began = time.process_time()
    for _ in range(10):
        for row in x:
            answer(runtime, row[None])
    return (time.process_time() - began) / (10 * len(x)) * 1e6


def bento_of(tag: str) -> Bento:
    """The record of the stage that packaged it."""
    for path in settings().home.glob("stages/package/*/record.json"):
        record = json.loads(path.read_text())["record"]
        if record["tag"] == tag:
            return Bento.model_validate(record)
    raise SystemExit(f"{tag} was not packaged in this state folder")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("name")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--requests", type=int, default=4000)
    asked.add_argument("--peers", nargs="*", default=["bentoml", "fastapi", "fastapi-lean", "mlflow"])
    chosen = asked.parse_args()
    enter()
    tag = version_of(chosen.name).tags[BENTO]
    bento = bento_of(tag)
    artifacts = artifacts_of(tag)
    manifest = json.loads((artifacts / "manifest.json").read_text())
    x = encode(read_encoder(artifacts / "encoder.json"), held_out_rows(bento.chosen).slice(0, NUM_ROWS))
    model = opened((artifacts / manifest["model"]).read_bytes())
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        more = {"PEER_MODEL": str(path), "PEER_SHAPE": ",".join(map(str, x.shape[1:]))}
        servers = []
        port = free_port()
        raw = [json.dumps({"rows": [row]}).encode() for row in rows_as_sent(bento.chosen, NUM_ROWS)]
        command = serve_command(tag, "127.0.0.1", port)
        servers.append(stack.enter_context(started("ours", command, port, "/predict", raw)))
        for name in chosen.peers:
            port = free_port()
            key, address = ("inputs", "/invocations") if name == "mlflow" else ("rows", "/predict")
            rows = x if name == "mlflow" else x.reshape(len(x), -1)
            bodies = [json.dumps({key: {"x": [row.tolist()]} if name == "mlflow" else [row.tolist()]}) for row in rows]
            command = [sys.executable, str(Path(__file__).with_name("peers.py")), name, str(port)]
            encoded = [body.encode() for body in bodies]
            servers.append(stack.enter_context(started(name, command, port, address, encoded, **more)))
        report(servers, chosen.rounds, chosen.requests, limit(model, x), len(os.sched_getaffinity(0)))


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
