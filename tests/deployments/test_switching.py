"""Versions that change while requests are answered, and the log that remembers which answered what."""

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
from bloomery.data_contracts.serving.champion_pointer import Pointer, read_followings, read_pointer, write_pointer
from bloomery.data_contracts.serving.prediction_log import FIELDS, as_parquet, read_log
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.bounded_queue import Backlog
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.deployments.endpoint.inference.pointer_follower import load
from bloomery.deployments.endpoint.startup import Wishes, open_endpoint, read_wishes
from bloomery.deployments.endpoint.telemetry.metrics import Measures
from bloomery.deployments.endpoint.telemetry.prediction_log import Bounds, PredictionLog

ROW = {"age": 49, "height": 1.7, "town": "york"}
_LOGGED = [field.name for field in FIELDS]


def pointer_to(artifacts: Path, tag: str, manifest_sha256: str = "") -> Pointer:
    return Pointer(
        name="people",
        version=1,
        bento=tag,
        artifacts=str(artifacts),
        manifest_sha256=manifest_sha256 or digest_of_file(artifacts / "manifest.json"),
    )


def answers(application: Application, count: int, **more: Any) -> list[dict[str, Any]]:
    """What single requests are told, one after the other."""

    async def call() -> list[dict[str, Any]]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            asked = [await client.post("/predict", json={"rows": [ROW]}, **more) for _ in range(count)]
            return [one.json() for one in asked]

    return asyncio.run(call())


@pytest.fixture
def opened(measures: Measures) -> Iterator[Callable[..., Application]]:
    """An application that was opened with the given wishes."""
    endings = []

    def make(artifacts: Path, **wishes: Any) -> Application:
        application = Application(Limits(), measures)
        application.end = open_endpoint(application, artifacts, Wishes(**wishes))  # type: ignore[attr-defined]
        endings.append(application.end)  # type: ignore[attr-defined]
        return application

    yield make
    for end in endings:
        end()


@pytest.fixture
def listening() -> Iterator[Callable[[Application], str]]:
    """Serves an application on loopback; returns its address."""
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
def test_twenty_changes_under_load_drop_nothing_and_no_answer_is_another_versions(
    packaged: Callable[..., Path], opened: Callable[..., Application], listening: Callable[..., str], tmp_path: Path
) -> None:
    versions = {"people:one": packaged(), "people:two": packaged("people:two", shift=-5.0)}
    damaged = packaged("people:three")
    (damaged / "model.onnx").write_bytes(b"no network")
    expected = {tag: Version(folder) for tag, folder in versions.items()}
    told = {
        tag: version.predictions(version.answers(version.check.table([ROW]).to_batches()[0]))[0]
        for tag, version in expected.items()
    }
    assert told["people:one"]["label"] != told["people:two"]["label"]
    path = tmp_path / "served" / "pointer.json"
    write_pointer(path, pointer_to(versions["people:one"], "people:one"))
    url = listening(opened(versions["people:one"], pointer=path))
    seen: list[tuple[int, dict[str, Any]]] = []
    is_over = threading.Event()

    async def ask() -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            while not is_over.is_set():
                given = await client.post("/predict", json={"rows": [ROW]})
                seen.append((given.status_code, given.json()))

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
                lambda wanted="people:three" if is_damaged else tag, refused=is_damaged: noted(path, wanted, refused)
            )
    finally:
        is_over.set()
        clients.join()
    assert {status for status, _ in seen} == {200}
    assert {document["model"] for _, document in seen} == set(versions)
    for _, document in seen:
        assert document["predictions"] == [told[document["model"]]]


def noted(path: Path, tag: str, is_refused: bool) -> bool:
    (following,) = read_followings(path.parent).values()
    return (following.refused if is_refused else following.bento) == tag


def wait_until(is_so: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_a_version_that_is_not_the_promoted_one_is_not_loaded(packaged: Callable[..., Path], tmp_path: Path) -> None:
    folder = packaged()
    with pytest.raises(OutputCorrupt, match="is not the one that was promoted"):
        load(pointer_to(folder, "people:one", "0" * 64))
    (tmp_path / "pointer.json").write_text("{")
    with pytest.raises(OutputCorrupt, match="the pointer cannot be read"):
        read_pointer(tmp_path / "pointer.json")


def test_a_canary_answers_about_its_share_and_says_so(
    packaged: Callable[..., Path], opened: Callable[..., Application]
) -> None:
    application = opened(packaged(), canary=packaged("people:canary", shift=-5.0), canary_share=0.25)
    given = answers(application, 400)
    by_canary = [one for one in given if one["model"] == "people:canary"]
    assert 60 < len(by_canary) < 140
    assert {one["predictions"][0]["label"] for one in by_canary} == {"old"}


def test_a_shadow_is_asked_all_and_only_the_log_hears_it(
    packaged: Callable[..., Path], opened: Callable[..., Application], tmp_path: Path
) -> None:
    application = opened(packaged(), shadow=packaged("people:shadow", shift=-5.0), log=tmp_path)
    given = answers(application, 20)
    assert {one["model"] for one in given} == {"people:one"}
    application.end()  # type: ignore[attr-defined]
    logged = pa.concat_tables(read_log(tmp_path, [*_LOGGED, "columns", "answer"]))
    assert logged.num_rows == 40
    assert not list(tmp_path.glob("day=*/*.arrows"))
    for role, label in (("champion", "young"), ("shadow", "old")):
        rows = [row for row in logged.to_pylist() if row["role"] == role]
        assert len({row["request"] for row in rows}) == 20
        assert {row["answer"]["label"] for row in rows} == {label}
        assert rows[0]["columns"] == {"age": 49, "height": 1.7, "town": "york"}
        assert 0 < rows[0]["run_seconds"] <= rows[0]["seconds"] + rows[0]["run_seconds"] < 20
        assert abs(rows[0]["at"].timestamp() - time.time()) < 60


def test_rows_keep_their_place_and_their_requests_id_in_the_log(
    packaged: Callable[..., Path], opened: Callable[..., Application], tmp_path: Path
) -> None:
    application = opened(packaged(), log=tmp_path)
    answers(application, 1, headers={"x-request-id": "order-7"})
    asyncio.run(application.answered([ROW, {**ROW, "age": 3}]))
    application.end()  # type: ignore[attr-defined]
    logged = pa.concat_tables(read_log(tmp_path, ["request", "row", "columns"])).to_pylist()
    assert [(row["row"], row["columns"]["age"]) for row in logged] == [(0, 49), (0, 49), (1, 3)]
    assert logged[0]["request"] == "order-7"
    assert logged[1]["request"] == logged[2]["request"] != "order-7"


def test_what_a_killed_endpoint_has_logged_is_there_but_for_a_broken_end(
    packaged: Callable[..., Path], opened: Callable[..., Application], tmp_path: Path
) -> None:
    application = opened(packaged(), log=tmp_path)
    answers(application, 3)
    wait_until(lambda: sum(table.num_rows for table in read_log(tmp_path, ["row"])) == 3)
    (stream,) = tmp_path.glob("day=*/*.arrows")
    killed = tmp_path / "killed" / stream.parent.name
    killed.mkdir(parents=True)
    (killed / f"000000-{os.getpid()}-1.arrows").write_bytes(stream.read_bytes() + b"\xff\xff\xff\xff\x10")
    again = PredictionLog(tmp_path / "killed", Bounds(), lambda _: None)
    again.start()
    again.end()
    assert [path.suffix for path in killed.iterdir()] == [".parquet"]
    assert sum(table.num_rows for table in read_log(tmp_path / "killed", ["row"])) == 3


def test_a_log_that_cannot_be_written_costs_no_answer_and_is_counted(
    packaged: Callable[..., Path], opened: Callable[..., Application], tmp_path: Path, measures: Measures
) -> None:
    (tmp_path / "file").write_text("no folder")
    before = lost(measures)
    application = opened(packaged(), log=tmp_path / "file")
    assert len(answers(application, 3)) == 3
    application.end()  # type: ignore[attr-defined]
    assert lost(measures) == before + 3


def lost(measures: Measures) -> float:
    return measures.lost_by_log.__self__._value.get()  # type: ignore[attr-defined]


def test_the_oldest_files_of_a_log_go_first(packaged: Callable[..., Path], measures: Measures, tmp_path: Path) -> None:
    for day in ("2020-01-01", "2020-01-02"):
        (tmp_path / f"day={day}").mkdir()
        (tmp_path / f"day={day}" / "000000-1-1.parquet").write_bytes(bytes(9_000))
    log = PredictionLog(tmp_path, Bounds(bytes=12_000), lambda _: None)
    log.start()
    application = Application(Limits(), measures)
    application.use(Version(packaged()))
    application.on_answered.append(log)
    answers(application, 1)
    log.end()
    assert [folder.name for folder in tmp_path.iterdir() if folder.name < "day=2026"] == []
    assert len(list(tmp_path.iterdir())) == 1


def test_a_backlog_has_room_for_so_many_rows_and_tells_what_it_loses(packaged: Callable[..., Path]) -> None:
    lost_rows: list[int] = []
    backlog = Backlog(3, lost_rows.append)
    one: Any = type("Answered", (), {"given": [0, 0]})()
    backlog.put(one)
    backlog.put(one)
    assert (backlog.take(0.01), lost_rows) == ([one], [2])
    backlog.put(one)
    assert backlog.take(0.01) == [one]


@pytest.mark.parametrize(
    ("stated", "said"),
    [
        ({"CANARY": "somewhere"}, "stated together"),
        ({"CANARY": "somewhere", "CANARY_SHARE": "5%"}, "a share from 0 to 1"),
        ({"SHADOW": "somewhere"}, "needs LOG"),
    ],
)
def test_wishes_that_cannot_be_met_are_told(stated: dict[str, str], said: str) -> None:
    with pytest.raises(SettingInvalid) as caught:
        read_wishes({f"BLOOMERY_SERVE_{name}": value for name, value in stated.items()})
    assert said in str(caught.value)


def test_an_endpoint_that_has_no_room_is_not_ready(packaged: Callable[..., Path], measures: Measures) -> None:
    def status(application: Application) -> int:
        async def call() -> int:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://e") as client:
                return (await client.get("/readyz")).status_code

        return asyncio.run(call())

    async def ready(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    application = Application(Limits(waiting=1), measures)
    application.inner = ready
    assert status(application) == 503
    application.use(Version(packaged()))
    assert status(application) == 200
    application._num_waiting = 1
    assert status(application) == 503


def test_a_stream_without_a_whole_batch_leaves_no_parquet(tmp_path: Path) -> None:
    stream = tmp_path / "one.arrows"
    stream.write_bytes(json.dumps("no stream").encode())
    as_parquet(stream)
    assert list(tmp_path.iterdir()) == []
