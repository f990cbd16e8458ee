"""Changes the champion under load, and checks every response against the version that it names.

    python benchmarks/serving/switching.py NAME FIRST SECOND [--changes 20] [--connections 16]

NAME has two complete versions FIRST and SECOND in the registry of BLOOMERY_HOME. `bloomery serve NAME` runs while
clients send held-out rows without a pause, and `bloomery promote` and `bloomery rollback` change the champion. Two of
the changes go to versions with damaged files: one by the command, which must refuse it, and one by the champion
pointer, which the endpoint must reject.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from endpoint import build_requests, read_bento_record

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.serving.champion_pointer import POINTER_FILE, ChampionPointer, read_pointer, write_pointer
from bloomery.data_contracts.serving.predictions import max_difference
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.models.inference.outputs import TOLERANCE, score_unit
from bloomery.tasks.bentos.bento_store import artifacts_folder, bento_folder
from bloomery.tasks.evaluation.held_out import request_rows
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.infrastructure.tethered_process import find_free_port, start_tethered, stop_tethered
from bloomery.tasks.registry import champion, model_registry

NUM_ROWS = 200


class ResponseChecker:
    """Counts responses. A prediction is wrong if its version predicts something else for the row."""

    def __init__(self, expected: dict[str, list[dict[str, Any]]], limit: float) -> None:
        self.expected, self.limit = expected, limit
        self.by_version: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.wrong = 0
        self.seconds: list[float] = []
        self.is_finished = False

    async def send_requests(self, port: int, requests: list[bytes], first: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        index = first
        while not self.is_finished:
            index = (index + 1) % len(requests)
            start_time = time.perf_counter()
            try:
                writer.write(requests[index])
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError) as error:
                self.errors[type(error).__name__] += 1
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                continue
            self.seconds.append(time.perf_counter() - start_time)
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                self.errors[head.split(b"\r\n", 1)[0].decode()] += 1
                continue
            self._check(json.loads(body), index)
        writer.close()

    def _check(self, document: dict[str, Any], index: int) -> None:
        tag = document["model"]
        self.by_version[tag] += 1
        (prediction,) = document["predictions"]
        if tag not in self.expected or max_difference(prediction, self.expected[tag][index]) > self.limit:
            self.wrong += 1


async def run_command(*arguments: str) -> tuple[int, str]:
    """Runs `bloomery` with these arguments. Returns its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bloomery.flows.cli", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode().strip()


def register_damaged_copy(name: str, tag: str) -> str:
    """Registers a version with a bento that has lost half of its model. Returns `NAME:VERSION`."""
    damaged_tag = f"{tag[:-4]}dead"
    shutil.copytree(bento_folder(tag), bento_folder(damaged_tag), dirs_exist_ok=True)
    _truncate_model(artifacts_folder(damaged_tag))
    original = model_registry.find_version(f"{name}@{model_registry.CHAMPION}")
    assert original.source is not None
    assert original.run_id is not None
    tags = {**original.tags, model_registry.BENTO: damaged_tag, "release": "promoted"}
    version = model_registry.register_version(name, original.source, original.run_id, tags, "a damaged copy")
    return f"{name}:{version.version}"


def _truncate_model(artifacts: Path) -> None:
    (model,) = (path for path in artifacts.glob("model*") if path.is_file())
    content = model.read_bytes()
    model.write_bytes(content[: len(content) // 2])


def point_at_damaged(name: str, folder: Path) -> ChampionPointer:
    """Sets the champion pointer to a damaged copy without any check. Returns the previous pointer."""
    path = champion.pointer_folder(name) / POINTER_FILE
    pointer = read_pointer(path)
    shutil.copytree(pointer.artifacts, folder)
    _truncate_model(folder)
    manifest = digest_of_file(folder / "manifest.json")
    changes = {"bento": f"{pointer.bento}-damaged", "artifacts": str(folder), "manifest_sha256": manifest}
    write_pointer(path, pointer.model_copy(update=changes))
    return pointer


async def change_champion(
    name: str, versions: tuple[str, str], changes: int, folder: Path
) -> list[tuple[str, str, int]]:
    """Changes the champion `changes` times. Returns each change with its result and its exit code."""
    results = []
    for number in range(changes):
        await asyncio.sleep(1)
        current = model_registry.find_version(f"{name}@{model_registry.CHAMPION}")
        arguments: tuple[str, ...]
        if number == changes // 3:
            arguments = (
                "promote",
                register_damaged_copy(name, current.tags[model_registry.BENTO]),
                "--reason",
                "damaged on purpose",
            )
        elif number == 2 * changes // 3:
            previous = point_at_damaged(name, folder / "damaged")
            await asyncio.sleep(2)
            (refusal,) = champion.list_followers(name)
            results.append(("pointer set to a damaged version", f"refused: {refusal.refusal_reason}"[:150], 0))
            write_pointer(champion.pointer_folder(name) / POINTER_FILE, previous)
            continue
        elif number % 2:
            arguments = ("rollback", name)
        else:
            arguments = ("promote", f"{name}:{versions[str(current.version) == versions[0]]}")
        code, output = await run_command(*arguments)
        results.append((" ".join(arguments), output.splitlines()[0][:150] if output else "", code))
    return results


async def measure(name: str, versions: tuple[str, str], changes: int, connections: int) -> None:
    """Serves the champion, sends requests while it changes, and prints the results."""
    tags = [model_registry.find_version(f"{name}:{number}").tags[model_registry.BENTO] for number in versions]
    rows = request_rows(read_bento_record(tags[0]).choice, NUM_ROWS)
    requests = build_requests("/predict", [json.dumps({"rows": [row]}).encode() for row in rows])
    expected, limit = {}, 0.0
    for tag in tags:
        version = LoadedVersion(artifacts_folder(tag))
        expected[tag] = version.format_predictions(version.predict(version.row_check.parse_table(rows).to_batches()[0]))
        limit = TOLERANCE * score_unit(version.encoder)
    checker = ResponseChecker(expected, limit)
    port = find_free_port()
    with (settings().logs / "switching.log").open("ab") as log, tempfile.TemporaryDirectory() as folder:
        server = start_tethered([sys.executable, "-m", "bloomery.flows.cli", "serve", name, "--port", str(port)], log)
        try:
            await _wait_until_ready(port)
            clients = [
                asyncio.create_task(checker.send_requests(port, requests, first)) for first in range(connections)
            ]
            start_time = time.perf_counter()
            results = await change_champion(name, versions, changes, Path(folder))
            checker.is_finished = True
            await asyncio.gather(*clients)
            seconds = time.perf_counter() - start_time
        finally:
            await asyncio.to_thread(stop_tethered, server)
    print("| change | result | exit code |\n| --- | --- | ---: |")
    for arguments, output, code in results:
        print(f"| {arguments} | {output} | {code} |")
    total = sum(checker.by_version.values())
    print(f"\n{total:,} requests over {connections} connections in {seconds:.0f} s: {dict(checker.by_version)}")
    print(f"errors {sum(checker.errors.values())} {dict(checker.errors)}, wrong {checker.wrong}")
    quantiles = statistics.quantiles(checker.seconds, n=1000)
    p50, p99, longest = (seconds * 1e3 for seconds in (quantiles[499], quantiles[989], max(checker.seconds)))
    print(f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, longest {longest:.0f} ms")


async def _wait_until_ready(port: int) -> None:
    for _ in range(240):
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.5)
        else:
            writer.close()
            await asyncio.sleep(2)
            return
    raise SystemExit("the endpoint does not respond; see switching.log in the state folder")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="the name of the recipe")
    parser.add_argument("first", help="number of a version")
    parser.add_argument("second", help="number of another version")
    parser.add_argument("--changes", type=int, default=20)
    parser.add_argument("--connections", type=int, default=16)
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[2] / "src")
    asyncio.run(measure(options.name, (options.first, options.second), options.changes, options.connections))


if __name__ == "__main__":
    main()
