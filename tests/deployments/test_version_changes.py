"""Version changes under load, canary and shadow, and the prediction log."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
import uvicorn

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt, SettingInvalid
from bloomery.data_contracts.serving.champion_pointer import (
    ChampionPointer,
    read_follower_statuses,
    read_pointer,
    write_pointer,
)
from bloomery.data_contracts.serving.prediction_log import LOG_FIELDS, convert_to_parquet, read_log
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.bounded_queue import BoundedQueue
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.inference.pointer_follower import load_version
from bloomery.deployments.endpoint.startup import ServingOptions, read_serving_options, start_endpoint
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.deployments.endpoint.telemetry.prediction_log import LogLimits, PredictionLog

ROW = {"age": 49, "height": 1.7, "town": "york"}
_LOGGED = [field.name for field in LOG_FIELDS]


def pointer_to(artifacts: Path, tag: str, manifest_sha256: str = "") -> ChampionPointer:
    return ChampionPointer(
        name="people",
        version=1,
        bento=tag,
        artifacts=str(artifacts),
        manifest_sha256=manifest_sha256 or digest_of_file(artifacts / "manifest.json"),
    )


def request_predictions(application: Application, count: int, **more: Any) -> list[dict[str, Any]]:
    """The responses to single requests in sequence."""

    async def call() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            responses = [await client.post("/predict", json={"rows": [ROW]}, **more) for _ in range(count)]
            return [response.json() for response in responses]

    return asyncio.run(call())


@pytest.fixture
def started(metrics: Metrics) -> Iterator[Callable[..., Application]]:
    """An application that was started with the given options."""
    shutdowns = []

    def make(artifacts: Path, **options: Any) -> Application:
        application = Application(Limits(), metrics)
        application.shut_down = start_endpoint(application, artifacts, ServingOptions(**options))  # type: ignore[attr-defined]
        shutdowns.append(application.shut_down)  # type: ignore[attr-defined]
        return application

    yield make
    for shut_down in shutdowns:
        shut_down()


@pytest.fixture
def listening() -> Iterator[Callable[[Application], str]]:
    """Serves an application on loopback; returns its URL."""
    servers = []

    def serve(application: Application) -> str:
        server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    yield serve
    for server, thread in servers:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_twenty_version_changes_under_load_drop_no_request_and_mix_no_versions(
    packaged: Callable[..., Path], started: Callable[..., Application], listening: Callable[..., str], tmp_path: Path
) -> None:
    versions = {"people:one": packaged(), "people:two": packaged("people:two", shift=-5.0)}
    damaged = packaged("people:three")
    (damaged / "model.onnx").write_bytes(b"not a network")
    expected = {tag: LoadedVersion(folder) for tag, folder in versions.items()}
    predictions = {
        tag: version.format_predictions(version.predict(version.row_check.parse_table([ROW]).to_batches()[0]))[0]
        for tag, version in expected.items()
    }
    assert predictions["people:one"]["label"] != predictions["people:two"]["label"]
    path = tmp_path / "served" / "pointer.json"
    write_pointer(path, pointer_to(versions["people:one"], "people:one"))
    url = listening(started(versions["people:one"], pointer=path))
    responses: list[tuple[int, dict[str, Any]]] = []
    is_over = threading.Event()

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            while not is_over.is_set():
                response = await client.post("/predict", json={"rows": [ROW]})
                responses.append((response.status_code, response.json()))

    async def ask_over_sixteen() -> None:
        await asyncio.gather(*(ask() for _ in range(16)))

    clients = threading.Thread(target=asyncio.run, args=(ask_over_sixteen(),))
    clients.start()
    try:
        for number in range(20):
            tag = ("people:two", "people:one")[number % 2]
            is_damaged = number in (6, 13)
            write_pointer(path, pointer_to(damaged, "people:three") if is_damaged else pointer_to(versions[tag], tag))
            wait_until(
                lambda tag="people:three" if is_damaged else tag, rejected=is_damaged: has_status(path, tag, rejected)
            )
    finally:
        is_over.set()
        clients.join()
    assert {status for status, _ in responses} == {200}
    assert {document["model"] for _, document in responses} == set(versions)
    for _, document in responses:
        assert document["predictions"] == [predictions[document["model"]]]


def has_status(path: Path, tag: str, is_rejected: bool) -> bool:
    (following,) = read_follower_statuses(path.parent).values()
    return (following.refused_bento if is_rejected else following.bento) == tag


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)


def test_a_version_with_another_manifest_is_not_loaded(packaged: Callable[..., Path], tmp_path: Path) -> None:
    folder = packaged()
    with pytest.raises(OutputCorrupt, match="is not the promoted one"):
        load_version(pointer_to(folder, "people:one", "0" * 64))
    (tmp_path / "pointer.json").write_text("{")
    with pytest.raises(OutputCorrupt, match="the pointer cannot be read"):
        read_pointer(tmp_path / "pointer.json")


def test_a_canary_serves_about_its_share_and_is_named_in_the_response(
    packaged: Callable[..., Path], started: Callable[..., Application]
) -> None:
    application = started(packaged(), canary=packaged("people:canary", shift=-5.0), canary_share=0.25)
    documents = request_predictions(application, 400)
    by_canary = [document for document in documents if document["model"] == "people:canary"]
    assert 60 < len(by_canary) < 140
    assert {document["predictions"][0]["label"] for document in by_canary} == {"old"}


def test_a_shadow_predicts_every_row_for_the_log_only(
    packaged: Callable[..., Path], started: Callable[..., Application], tmp_path: Path
) -> None:
    application = started(packaged(), shadow=packaged("people:shadow", shift=-5.0), log=tmp_path)
    documents = request_predictions(application, 20)
    assert {document["model"] for document in documents} == {"people:one"}
    application.shut_down()  # type: ignore[attr-defined]
    logged = pa.concat_tables(read_log(tmp_path, [*_LOGGED, "columns", "prediction"]))
    assert logged.num_rows == 40
    assert not list(tmp_path.glob("day=*/*.arrows"))
    for role, label in (("champion", "young"), ("shadow", "old")):
        rows = [row for row in logged.to_pylist() if row["role"] == role]
        assert len({row["request"] for row in rows}) == 20
        assert {row["prediction"]["label"] for row in rows} == {label}
        assert rows[0]["columns"] == {"age": 49, "height": 1.7, "town": "york"}
        assert 0 < rows[0]["run_seconds"] <= rows[0]["seconds"] + rows[0]["run_seconds"] < 20
        assert abs(rows[0]["at"].timestamp() - time.time()) < 60


def test_log_rows_have_their_index_and_their_request_id(
    packaged: Callable[..., Path], started: Callable[..., Application], tmp_path: Path
) -> None:
    application = started(packaged(), log=tmp_path)
    request_predictions(application, 1, headers={"x-request-id": "order-7"})
    asyncio.run(application.predict([ROW, {**ROW, "age": 3}]))
    application.shut_down()  # type: ignore[attr-defined]
    logged = pa.concat_tables(read_log(tmp_path, ["request", "row", "columns"])).to_pylist()
    assert [(row["row"], row["columns"]["age"]) for row in logged] == [(0, 49), (0, 49), (1, 3)]
    assert logged[0]["request"] == "order-7"
    assert logged[1]["request"] == logged[2]["request"] != "order-7"


def test_the_log_of_a_killed_endpoint_is_complete_up_to_its_last_batch(
    packaged: Callable[..., Path], started: Callable[..., Application], tmp_path: Path
) -> None:
    application = started(packaged(), log=tmp_path)
    request_predictions(application, 3)
    wait_until(lambda: sum(table.num_rows for table in read_log(tmp_path, ["row"])) == 3)
    (stream,) = tmp_path.glob("day=*/*.arrows")
    killed = tmp_path / "killed" / stream.parent.name
    killed.mkdir(parents=True)
    (killed / f"000000-{os.getpid()}-1.arrows").write_bytes(stream.read_bytes() + b"\xff\xff\xff\xff\x10")
    next_log = PredictionLog(tmp_path / "killed", LogLimits(), lambda _: None)
    next_log.start()
    next_log.close()
    assert [path.suffix for path in killed.iterdir()] == [".parquet"]
    assert sum(table.num_rows for table in read_log(tmp_path / "killed", ["row"])) == 3


def test_rows_of_an_unwritable_log_are_counted_as_dropped(
    packaged: Callable[..., Path], started: Callable[..., Application], tmp_path: Path, metrics: Metrics
) -> None:
    (tmp_path / "file").write_text("not a folder")
    before = count_dropped(metrics)
    application = started(packaged(), log=tmp_path / "file")
    assert len(request_predictions(application, 3)) == 3
    application.shut_down()  # type: ignore[attr-defined]
    assert count_dropped(metrics) == before + 3


def count_dropped(metrics: Metrics) -> float:
    return metrics.count_dropped_by_log.__self__._value.get()  # type: ignore[attr-defined]


def test_the_oldest_log_files_are_removed_first(
    packaged: Callable[..., Path], metrics: Metrics, tmp_path: Path
) -> None:
    for day in ("2020-01-01", "2020-01-02"):
        (tmp_path / f"day={day}").mkdir()
        (tmp_path / f"day={day}" / "000000-1-1.parquet").write_bytes(bytes(9_000))
    log = PredictionLog(tmp_path, LogLimits(total_bytes=12_000), lambda _: None)
    log.start()
    application = Application(Limits(), metrics)
    application.use_version(LoadedVersion(packaged()))
    application.batch_listeners.append(log)
    request_predictions(application, 1)
    log.close()
    assert [folder.name for folder in tmp_path.iterdir() if folder.name < "day=2026"] == []
    assert len(list(tmp_path.iterdir())) == 1


def test_a_bounded_queue_drops_and_reports_rows_beyond_its_limit(packaged: Callable[..., Path]) -> None:
    dropped_rows: list[int] = []
    queue = BoundedQueue(3, dropped_rows.append)
    batch: Any = type("Batch", (), {"outputs": [0, 0]})()
    queue.put(batch)
    queue.put(batch)
    assert (queue.take_all(0.01), dropped_rows) == ([batch], [2])
    queue.put(batch)
    assert queue.take_all(0.01) == [batch]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"CANARY": "somewhere"}, "must be set together"),
        ({"CANARY": "somewhere", "CANARY_SHARE": "5%"}, "a share from 0 to 1"),
        ({"SHADOW": "somewhere"}, "needs LOG"),
    ],
)
def test_invalid_options_are_rejected(variables: dict[str, str], message: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        read_serving_options({f"BLOOMERY_SERVE_{name}": value for name, value in variables.items()})
    assert message in str(caught.value)


def test_an_endpoint_at_its_limit_is_not_ready(packaged: Callable[..., Path], metrics: Metrics) -> None:
    def status(application: Application) -> int:
        async def call() -> int:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://e") as client:
                return (await client.get("/readyz")).status_code

        return asyncio.run(call())

    async def ready(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    application = Application(Limits(waiting=1), metrics)
    application.inner = ready
    assert status(application) == 503
    application.use_version(LoadedVersion(packaged()))
    assert status(application) == 200
    application._num_waiting = 1
    assert status(application) == 503


def test_a_stream_without_a_complete_batch_leaves_no_parquet(tmp_path: Path) -> None:
    stream = tmp_path / "one.arrows"
    stream.write_bytes(json.dumps("no stream").encode())
    convert_to_parquet(stream)
    assert list(tmp_path.iterdir()) == []
