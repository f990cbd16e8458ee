"""Images and recordings that are sent as files: in forms, and as base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from scipy.io import wavfile

from bloomery.data_contracts.odcs.contract import Contract
from bloomery.data_contracts.requests.arrow_rows import ArrowRowParser
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
from bloomery.deployments.endpoint.asgi import media_rows
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.http.responses import Response
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.models.media.config import read_media_columns, write_media_columns
from tests.deployments.media_versions import IMAGE, RECORDING, RESIZED_IMAGE, package_version

PIXELS = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 13
LIMITS = Limits(body_bytes=100_000, rows=5, image_pixels=10_000, audio_samples=50_000)


def encode(pixels: np.ndarray = PIXELS, file_format: str = "PNG", **options: Any) -> bytes:
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, file_format, **options)
    return sink.getvalue()


def values_of(pixels: np.ndarray) -> list[int]:
    return pixels.transpose(2, 0, 1).reshape(-1).tolist()


def wav(samples: np.ndarray, rate: int = 8000) -> bytes:
    sink = io.BytesIO()
    wavfile.write(sink, rate, samples)
    return sink.getvalue()


def in_base64(content: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(content).decode()}


Serve = Callable[..., Application]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory, contract_of: Callable[..., Contract], metrics: Metrics) -> Serve:
    """`serve(IMAGE)` makes an endpoint of a version that takes such files."""

    def make(media: Any, limits: Limits = LIMITS) -> Application:
        application = Application(limits, metrics)
        application.use_version(LoadedVersion(package_version(tmp_path_factory.mktemp("v"), media, contract_of)))
        return application

    return make


@pytest.fixture(scope="module")
def images(serve: Serve) -> Application:
    return serve(IMAGE)


@pytest.fixture(scope="module")
def recordings(serve: Serve) -> Application:
    return serve(RECORDING)


def ask(application: Application, path: str = "/predict", **request: Any) -> httpx.Response:
    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.post(path, **request)

    return asyncio.run(call())


def predictions(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["predictions"]


def problem(response: httpx.Response, status: int = 422) -> dict[str, Any]:
    assert response.status_code == status, response.text
    result: dict[str, Any] = response.json()["problems"][0]
    return result


def test_images_as_files_get_the_predictions_of_their_pixels(images: Application) -> None:
    other_pixels = PIXELS[::-1]
    rows = [{"picture": values_of(pixels)} for pixels in (PIXELS, other_pixels)]
    expected = predictions(ask(images, json={"rows": rows}))
    contents = [encode(), encode(other_pixels, "BMP")]
    files = [("picture", (f"{number}.png", content)) for number, content in enumerate(contents)]
    assert predictions(ask(images, files=files)) == expected
    in_json = [{"picture": in_base64(content)} for content in contents]
    assert predictions(ask(images, json={"rows": in_json})) == expected
    assert predictions(ask(images, json={"rows": [in_json[0], rows[1]]})) == expected


def test_an_image_is_turned_and_resized_as_training_images_are(serve: Serve, images: Application) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = encode(PIXELS[::-1, ::-1], exif=exif)
    expected = predictions(ask(images, json={"rows": [{"picture": values_of(PIXELS)}]}))
    assert predictions(ask(images, files={"picture": ("a.png", turned)})) == expected
    large = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    small = np.asarray(Image.fromarray(large).resize((3, 2), Image.Resampling.BILINEAR))
    application = serve(RESIZED_IMAGE)
    expected = predictions(ask(application, json={"rows": [{"picture": values_of(small)}]}))
    assert predictions(ask(application, files={"picture": ("a.png", encode(large))})) == expected


def test_a_recording_gets_the_prediction_of_its_samples_at_the_model_s_rate(recordings: Application) -> None:
    samples = np.random.default_rng(0).integers(-9999, 9999, 500, np.int16)
    expected = predictions(ask(recordings, json={"rows": [{"wave": (samples / 32768).tolist()}]}))
    stereo = np.stack([samples, samples], axis=1)
    for content in (wav(samples), wav(stereo)):
        assert predictions(ask(recordings, files={"wave": ("a.wav", content)})) == expected
        assert predictions(ask(recordings, json={"rows": [{"wave": in_base64(content)}]})) == expected
    slow = np.sin(np.arange(500) / 20).astype(np.float32)
    fast = np.sin(np.arange(1000) / 40).astype(np.float32)
    (expected,), (converted,) = (
        predictions(ask(recordings, files={"wave": ("a.wav", wav(*recording))}))
        for recording in ((slow, 8000), (fast, 16000))
    )
    assert converted["label"] == expected["label"]


def test_many_values_are_checked_as_arrays_with_the_same_result(
    images: Application, recordings: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = np.random.default_rng(0).integers(-9999, 9999, 500, np.int16)
    file, wave = ("picture", ("a.png", encode())), ("wave", ("a.wav", wav(samples)))
    requests: list[tuple[Application, dict[str, Any]]] = [
        (images, {"files": [file, file]}),
        (images, {"json": {"rows": [{"picture": in_base64(encode())}, {"picture": values_of(PIXELS)}]}}),
        (images, {"files": [file, ("rows", (None, b'[{"age": 3}]'))]}),
        (images, {"files": [file, ("rows", (None, b"[5]"))]}),
        (images, {"json": {"rows": [{"picture": in_base64(encode())}, {}, {"picture": [1, "x"]}, 7]}}),
        (recordings, {"files": [wave, wave]}),
        (recordings, {"json": {"rows": [{"wave": in_base64(wav(samples))}]}}),
    ]
    expected = [ask(application, **request) for application, request in requests]
    assert [response.status_code for response in expected] == [200, 200, 422, 422, 422, 200, 200]
    results: list[Any] = []
    check = media_rows._check_by_arrow

    def record(*arguments: Any) -> Any:
        results.append(check(*arguments))
        return results[-1]

    monkeypatch.setattr(media_rows, "_check_by_arrow", record)
    monkeypatch.setattr(media_rows, "MAX_PYTHON_VALUES", 0)
    for (application, request), before in zip(requests, expected, strict=True):
        response = ask(application, **request)
        assert (response.status_code, response.json()) == (before.status_code, before.json())
    assert sum(isinstance(result, pa.RecordBatch) for result in results) >= 3


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"text", "no format that Pillow knows"),
        ("a.png", encode()[:-30], "no image"),
        ("big.png", encode(np.zeros((4, 3, 3), np.uint8)), "4 x 3 pixels, where 2 x 3 are required (height x width)"),
        ("", b"", "no format that Pillow knows"),
    ],
)
def test_a_file_that_is_no_such_image_is_named_with_field_row_and_reason(
    images: Application, name: str, content: bytes, reason: str
) -> None:
    files = [("picture", ("good.png", encode())), ("picture", (name, content))]
    if name:  # httpx sends no empty name
        invalid = problem(ask(images, files=files))
        assert (invalid["row"], invalid["column"], invalid["found"]) == (1, "picture", f"file {name!r}")
        assert reason in invalid["rule"]
    invalid = problem(ask(images, json={"rows": [{"picture": in_base64(content)}]}))
    assert (invalid["row"], invalid["column"], invalid["found"]) == (0, "picture", f"a file of {len(content):,} bytes")
    assert reason in invalid["rule"]


def test_recordings_without_sound_are_refused(recordings: Application) -> None:
    for samples, reason in (([], "an empty recording"), ([0] * 9, "silence")):
        response = ask(recordings, files={"wave": ("a.wav", wav(np.array(samples, np.int16)))})
        assert reason in problem(response)["rule"]


@pytest.mark.parametrize(
    "cell", [{"base64": "???"}, {"base64": 5}, {"base64": "é"}, {"base64": "", "x": 1}, {"base64": None}]
)
def test_a_cell_that_is_no_base64_is_refused(images: Application, cell: dict[str, Any]) -> None:
    invalid = problem(ask(images, json={"rows": [{"picture": values_of(PIXELS)}, {"picture": cell}]}))
    assert (invalid["row"], invalid["column"], "base64" in invalid["rule"]) == (1, "picture", True)


def test_a_form_with_other_fields_says_where_files_belong(images: Application) -> None:
    invalid = problem(ask(images, files={"photo": ("a.png", encode())}))
    assert (invalid["column"], invalid["found"]) == ("photo", "file 'a.png'")
    assert "in the field picture" in invalid["rule"]
    assert problem(ask(images, files={"picture": (None, b"1,2")}))["found"] == "text"
    file = ("picture", ("a.png", encode()))
    invalid = problem(ask(images, files=[file, ("rows", (None, b"[{}, {}]"))]))
    assert (invalid["column"], invalid["found"]) == ("picture", "1 files")
    invalid = problem(ask(images, files=[file, ("rows", (None, b'[{"age": 3}]'))]))
    assert (invalid["row"], invalid["column"]) == (0, "age")
    assert ask(images, files=[file, ("rows", (None, b"[{"))]).status_code == 400
    assert predictions(ask(images, files=[file, ("rows", (None, b"[{}]"))]))


def test_a_damaged_form_is_unreadable(images: Application) -> None:
    form = httpx.Request("POST", "http://endpoint", files={"picture": ("a.png", encode())})
    content_type = {"content-type": form.headers["content-type"]}
    body = form.read()
    assert ask(images, content=body, headers=content_type).status_code == 200
    for damaged in (body[:-20], body[20:], b"--x", body.replace(b'name="picture"; ', b"")):
        assert ask(images, content=damaged, headers=content_type).status_code == 400
    assert ask(images, content=body, headers={"content-type": "multipart/form-data"}).status_code == 400


def test_json_of_another_form_gets_the_usual_errors(images: Application) -> None:
    headers = {"content-type": "application/json"}
    for body, status in ((b'{"base64"', 400), (b'["base64"]', 422), (b'{"rows": ["base64"]}', 422)):
        assert ask(images, content=body, headers=headers).status_code == status


def test_files_beyond_a_limit_are_refused_by_name(serve: Serve, images: Application, recordings: Application) -> None:
    bomb = encode(np.zeros((200, 200, 3), np.uint8))
    invalid = problem(ask(images, files={"picture": ("bomb.png", bomb)}), 413)
    assert (invalid["column"], invalid["found"]) == ("picture", "file 'bomb.png' with 200 x 200 pixels")
    assert "10,000 pixels" in invalid["rule"]
    long = wav(np.arange(1000, dtype=np.int16), 100)  # 80,000 samples at 8000 Hz
    assert "80,000 samples" in problem(ask(recordings, files={"wave": ("a.wav", long)}), 413)["found"]
    many = [("picture", ("a.png", encode()))] * 6
    assert ask(images, files=many).status_code == 413
    assert ask(images, json={"rows": [{"picture": in_base64(encode())}] * 6}).status_code == 413
    assert ask(images, files={"picture": ("a.png", bytes(200_000))}).status_code == 413


def parse_two_columns(rows: Any, *files: tuple[str, bytes], limits: Limits = LIMITS) -> list[Any]:
    """The rows of a form for a version that takes files in two columns; its check of rows accepts all."""
    version: Any = SimpleNamespace(media=(IMAGE, RECORDING), row_check=SimpleNamespace(parse_rows=lambda rows: rows))
    parts: list[Any] = [(name, (f"{number}.bin", content)) for number, (name, content) in enumerate(files)]
    parts += [] if rows is None else [("rows", (None, json.dumps(rows).encode()))]
    request = httpx.Request("POST", "http://x", files=parts)
    parsed = media_rows.parse_media_rows(version, request.headers["content-type"].encode(), request.read(), limits)
    assert isinstance(parsed, list)
    return parsed


def test_files_of_two_columns_go_to_the_rows_that_have_none() -> None:
    red, blue = encode(), encode(255 - PIXELS)
    sound = np.arange(-50, 50, dtype=np.int16) * 300
    rows = parse_two_columns(None, ("picture", red), ("wave", wav(sound)))
    assert rows[0]["picture"] == values_of(PIXELS)
    assert len(rows[0]["wave"]) == 100
    rows = parse_two_columns([{"picture": None, "age": 1}, {"age": 2}, {}], ("picture", red), ("picture", blue))
    assert [row.get("picture") for row in rows] == [None, values_of(PIXELS), values_of(255 - PIXELS)]
    assert [row.get("age") for row in rows] == [1, 2, None]
    assert all("wave" not in row for row in rows)
    with pytest.raises(RowsRefused) as refusal:
        parse_two_columns([{"picture": None}, {}], *[("picture", red)] * 3)
    assert refusal.value.problems[0]["rule"].endswith("rows: 2, or as rows there without picture: 1")
    with pytest.raises(RowsRefused) as refusal:
        parse_two_columns(None, ("pictures", red))
    assert "in the field picture or wave" in refusal.value.problems[0]["rule"]
    strict = LIMITS._replace(audio_samples=99)
    with pytest.raises(HTTPError, match="99 samples together"):
        parse_two_columns(None, ("picture", red), ("wave", wav(sound)), limits=strict)


def test_a_form_without_files_has_the_rows_of_its_field(images: Application) -> None:
    row = {"picture": values_of(PIXELS)}
    expected = predictions(ask(images, json={"rows": [row]}))
    assert predictions(ask(images, files={"rows": (None, json.dumps([row]).encode())})) == expected
    assert parse_two_columns([{"picture": None, "age": 1}]) == [{"picture": None, "age": 1}]
    invalid = problem(ask(images, files={"rows": (None, b"[{}]")}))
    assert (invalid["row"], invalid["column"]) == (0, "picture")


def test_dates_beside_many_pixels_are_checked_as_in_json(
    contract_of: Callable[..., Contract], monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = contract_of(
        {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True, "primaryKeyPosition": 1},
        {"name": "picture", "logicalType": "array", "items": {"logicalType": "integer", "physicalType": "uint8"}},
        {"name": "day", "logicalType": "date"},
        {"name": "seen", "logicalType": "timestamp"},
    )
    names = ["picture", "day", "seen"]
    checks = {"row_check": JsonRowParser(contract, names), "arrow_check": ArrowRowParser(contract, names)}
    version: Any = SimpleNamespace(media=(IMAGE,), contract=contract, **checks)
    row = {"picture": in_base64(encode()), "day": "2024-02-29", "seen": "2024-02-29T12:00:00+02:00"}

    def parse(*rows: dict[str, Any]) -> Any:
        return media_rows.parse_media_rows(version, b"", json.dumps({"rows": rows}).encode(), LIMITS)

    expected = version.row_check.to_columns(parse(row, {**row, "day": None})).batch
    monkeypatch.setattr(media_rows, "MAX_PYTHON_VALUES", 0)
    batch = parse(row, {**row, "day": None})
    assert isinstance(batch, pa.RecordBatch)
    assert batch.select(names).to_pylist() == expected.select(names).to_pylist()
    for wrong in ({"day": "2024-02-30"}, {"seen": "2024-02-29T12:00:00"}, {"day": 5}):
        with pytest.raises(RowsRefused) as refusal:
            parse(row, {**row, **wrong})
        assert [(item["row"], item["column"]) for item in refusal.value.problems] == [(1, *wrong)]


def test_media_of_one_column_are_stored_as_before() -> None:
    assert json.loads(write_media_columns([IMAGE])) == IMAGE.model_dump(mode="json")
    for columns in ((IMAGE,), (IMAGE, RECORDING)):
        assert read_media_columns(write_media_columns(columns)) == columns


def test_a_model_without_files_takes_no_form(packaged: Callable[..., Path], metrics: Metrics) -> None:
    application = Application(LIMITS, metrics)
    application.use_version(LoadedVersion(packaged()))
    response = ask(application, files={"picture": ("a.png", encode())})
    assert (response.status_code, response.headers["accept"].count("multipart")) == (415, 0)


def test_the_fast_path_decodes_files_too(images: Application) -> None:
    form = httpx.Request("POST", "http://endpoint", files={"picture": ("a.png", encode())})
    scope = {"headers": [(b"content-type", form.headers["content-type"].encode())]}
    body = form.read()

    async def call(content: bytes) -> Response:
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        images.handle_predict(scope, content, future.set_result)
        return await future

    assert json.loads(asyncio.run(call(body)).body)["predictions"] == predictions(
        ask(images, content=body, headers=form.headers)
    )
    assert asyncio.run(call(body[:-20])).status == 400


def test_the_openapi_document_describes_files(images: Application, recordings: Application) -> None:
    async def call(application: Application) -> dict[str, Any]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            document: dict[str, Any] = (await client.get("/openapi.json")).json()
            return document

    for application, name, media_type in ((images, "picture", "image/*"), (recordings, "wave", "audio/wav")):
        document = asyncio.run(call(application))
        assert "multipart/form-data" in document["paths"]["/predict"]["post"]["requestBody"]["content"]
        schemas = document["components"]["schemas"]
        assert schemas["Form"]["properties"][name]["items"]["contentMediaType"] == media_type
        array, file = schemas["Row"]["properties"][name]["anyOf"]
        assert (array["type"], [*file["properties"]]) == ("array", ["base64"])
