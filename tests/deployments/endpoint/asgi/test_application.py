"""The endpoint without a server: predictions, errors, and the isolation of requests that share a run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt
from bloomery.data_contracts.requests.arrow_rows import ARROW_MEDIA_TYPE as ARROW
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.models.features.encoder import encode
from bloomery.models.inference.runtime import create_session, softmax
from tests.examples import examples

ROW = {"age": 30, "height": 1.7, "town": "york"}
JSON = {"content-type": "application/json"}
CASE_FIELDS = ("case", "body", "status", "message")


@pytest.fixture(scope="module")
def version(packaged: Callable[..., Path]) -> LoadedVersion:
    return LoadedVersion(packaged())


@pytest.fixture(scope="module")
def application(version: LoadedVersion, metrics: Metrics) -> Application:
    application = Application(Limits(body_bytes=20_000, rows=100, waiting=64), metrics)
    application.use_version(version)
    return application


def ask(application: Application, body: Any, path: str = "/predict", method: str = "POST", **headers: str) -> Any:
    """The response to one request; a body other than bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    header_fields = {name.replace("_", "-"): value for name, value in headers.items()}

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.request(method, path, content=content, headers={**JSON, **header_fields})

    return asyncio.run(call())


def stream_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def test_predictions_are_in_order_with_label_probabilities_and_version(application: Application) -> None:
    response = ask(application, {"rows": [ROW, {**ROW, "age": 70}, {"age": 5, "town": "nowhere"}]})
    assert response.status_code == 200
    document = response.json()
    assert [prediction["label"] for prediction in document["predictions"]] == ["young", "old", "young"]
    for prediction in document["predictions"]:
        probabilities = prediction["probabilities"]
        assert sum(probabilities.values()) == pytest.approx(1)
        assert probabilities[prediction["label"]] == max(probabilities.values())
    assert document["model"] == response.headers["x-model-version"] == "people:one"
    assert response.headers["content-type"] == "application/json"


def test_a_request_keeps_its_id_if_it_is_valid(application: Application) -> None:
    assert ask(application, {"rows": [ROW]}, x_request_id="order-7").headers["x-request-id"] == "order-7"
    generated = ask(application, {"rows": [ROW]}, x_request_id="a b\tc").headers["x-request-id"]
    assert generated != "a b\tc"
    assert generated != ask(application, {"rows": [ROW]}).headers["x-request-id"]


INVALID_BODIES: list[tuple[str, Any, int, str]] = [
    ("a missing column", {"rows": [{"age": 3}]}, 422, "row 0, column town: found no value, but the column is required"),
    ("an extra column", {"rows": [{**ROW, "label": "old"}]}, 422, "column label: found 'old', but the contract has no"),
    ("a number as text", {"rows": [{**ROW, "age": "30"}]}, 422, "column age: found '30', but input should be a valid"),
    ("a boolean", {"rows": [{**ROW, "age": True}]}, 422, "column age: found True"),
    ("a fraction of a year", {"rows": [{**ROW, "age": 30.5}]}, 422, "column age: found 30.5"),
    ("out of range", {"rows": [{**ROW, "age": 121}]}, 422, "column age: found 121, but input should be less than"),
    ("at an excluded limit", {"rows": [{**ROW, "height": 3.0}]}, 422, "column height: found 3.0"),
    ("null in a required column", {"rows": [{**ROW, "age": None}]}, 422, "column age: found None"),
    ("another pattern", {"rows": [{**ROW, "town": "York"}]}, 422, "column town: found 'York', but must match ^[a-z]+$"),
    ("the second row", {"rows": [ROW, {**ROW, "age": -1}]}, 422, "row 1, column age: found -1"),
    ("no rows", {"rows": []}, 422, "the request: found"),
    ("a row that is a list", {"rows": [[1, 2, 3]]}, 422, "row 0"),
    ("a cell that is a list", {"rows": [{**ROW, "age": [30]}]}, 422, "column age"),
    ("rows that are an object", {"rows": ROW}, 422, "the request"),
    ("not an object", [ROW], 422, "the request"),
    ("another key beside rows", {"rows": [ROW], "more": 1}, 422, "the request"),
    ("NaN", b'{"rows": [{"age": 30, "height": NaN, "town": "york"}]}', 422, "column height"),
    ("infinity", b'{"rows": [{"age": 30, "height": -Infinity, "town": "york"}]}', 422, "column height"),
    ("1e400", b'{"rows": [{"age": 30, "height": 1e400, "town": "york"}]}', 422, "column height"),
    ("a huge whole number", b'{"rows": [{"age": ' + b"9" * 400 + b', "town": "york"}]}', 422, "column age"),
    ("half a surrogate", b'{"rows": [{"age": 30, "town": "\\ud800"}]}', 400, "cannot be read"),
    ("half of an object", b'{"rows": [{"age": 30', 400, "cannot be read"),
    ("not JSON", b"rows", 400, "cannot be read"),
    ("invalid UTF-8", b'{"rows": [{"age": 30, "town": "\xff"}]}', 400, "cannot be read"),
    ("an empty body", b"", 400, "the body is empty"),
    ("too many rows", {"rows": [ROW] * 101}, 413, "101 rows; the limit is 100"),
    ("a too long body", b" " * 20_001, 413, "20,001 bytes; the limit is 20,000 bytes"),
    ("deep nesting", b'{"rows": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "cannot be read"),
]


@pytest.mark.parametrize(CASE_FIELDS, INVALID_BODIES, ids=[case[0] for case in INVALID_BODIES])
def test_an_invalid_request_gets_an_error_with_its_problems(application, case, body, status, message) -> None:
    response = ask(application, body)
    assert (response.status_code, set(response.json())) == (status, {"error", "problems"}), response.text
    assert message in response.json()["error"]
    if status == 422:
        assert all(set(problem) == {"row", "column", "found", "rule"} for problem in response.json()["problems"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "text/csv"}, 415),
        ({"content_type": ""}, 415),
        ({"content_encoding": "gzip"}, 415),
        ({"content_type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_only_supported_content_types_are_read(application, headers, status) -> None:
    assert ask(application, {"rows": [ROW]}, **headers).status_code == status


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_rows_require_post(application, method) -> None:
    response = ask(application, {"rows": [ROW]}, method=method)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(("path", "status"), [("/info", 405), ("/nowhere", 404)])
def test_pages_require_get(application, path, status) -> None:
    response = ask(application, b"", path=path, method="TRACE")
    assert (response.status_code, response.headers.get("allow")) == (status, "GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize("path", ["/nowhere", "/predict/", "/docs/../secret", "/docs/index.html"])
def test_other_paths_are_not_found(application, path) -> None:
    assert ask(application, b"", path=path, method="GET").status_code == 404


def test_a_chunked_body_is_rejected_at_the_limit(application) -> None:
    num_sent = 0

    async def call() -> httpx.Response:
        async def chunks() -> AsyncIterator[bytes]:
            nonlocal num_sent
            for _ in range(100):
                num_sent += 1
                yield b" " * 1000

        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.post("/predict", content=chunks(), headers=JSON)

    assert asyncio.run(call()).status_code == 413
    assert num_sent < 30


def test_an_arrow_stream_gets_the_same_predictions_as_json(application, version) -> None:
    rows = [ROW, {"age": 70, "height": None, "town": "bath"}]
    table = pa.Table.from_pylist(rows, schema=version.row_check.schema)
    in_json = ask(application, {"rows": rows}).json()
    assert ask(application, stream_of(table), content_type=ARROW).json() == in_json
    # Any width of number, dictionary-encoded text and any order of columns.
    variant = pa.table(
        {
            "town": pa.array(["york", "bath"]).dictionary_encode(),
            "age": pa.array([30, 70], pa.int16()),
            "height": pa.array([1.7, None], pa.float64()),
        }
    )
    assert ask(application, stream_of(variant), content_type=ARROW).json() == in_json
    response = ask(application, stream_of(table), content_type=ARROW, accept=ARROW)
    assert response.headers["content-type"] == ARROW
    predictions = pa.ipc.open_stream(response.content).read_all()
    assert predictions["label"].to_pylist() == [prediction["label"] for prediction in in_json["predictions"]]
    assert predictions["probabilities"].to_pylist() == [
        list(prediction["probabilities"].values()) for prediction in in_json["predictions"]
    ]
    assert json.loads(predictions.schema.metadata[b"classes"]) == list(in_json["predictions"][0]["probabilities"])


TABLE = pa.table({"age": [30, 70], "height": [1.7, 1.6], "town": ["york", "bath"]})
INVALID_STREAMS: list[tuple[str, bytes, int, str]] = [
    ("truncated", stream_of(TABLE)[:-200], 400, "not a complete Arrow stream"),
    ("noise", b"ARROW1" * 50, 400, "not a complete Arrow stream"),
    ("no rows", stream_of(TABLE.slice(0, 0)), 422, "there must be at least one"),
    ("a column missing", stream_of(TABLE.drop_columns(["age"])), 422, "column age: found no column"),
    ("an extra column", stream_of(TABLE.append_column("label", pa.array(["a", "b"]))), 422, "no such column"),
    ("text for a number", stream_of(TABLE.set_column(0, "age", pa.array(["1", "2"]))), 422, "column age: found string"),
    ("too old", stream_of(TABLE.set_column(0, "age", pa.array([30, 121]))), 422, "row 1, column age: found 121"),
    ("null", stream_of(TABLE.set_column(0, "age", pa.array([30, None]))), 422, "row 1, column age: found null"),
    ("NaN", stream_of(TABLE.set_column(1, "height", pa.array([1.7, np.nan]))), 422, "row 1, column height"),
    ("a fraction", stream_of(TABLE.set_column(0, "age", pa.array([30.0, 30.5]))), 422, "row 1, column age: found 30.5"),
    ("a pattern", stream_of(TABLE.set_column(2, "town", pa.array(["york", "Y"]))), 422, "row 1, column town: found Y"),
    ("too many", stream_of(pa.concat_tables([TABLE] * 51)), 422, "more than 100 rows"),
]


@pytest.mark.parametrize(CASE_FIELDS, INVALID_STREAMS, ids=[case[0] for case in INVALID_STREAMS])
def test_an_invalid_arrow_stream_gets_an_error_with_its_problems(application, case, body, status, message) -> None:
    response = ask(application, body, content_type=ARROW)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


@settings(deadline=None, max_examples=examples(100), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300), start=st.integers(0, 400), is_arrow=st.booleans())
def test_no_body_causes_an_internal_error(application, body, start, is_arrow) -> None:
    valid = stream_of(TABLE) if is_arrow else json.dumps({"rows": [ROW]}).encode()
    changed = valid[:start] + body + valid[start + len(body) :]
    response = ask(application, changed, content_type=ARROW if is_arrow else "application/json")
    assert response.status_code in (200, 400, 422), response.text


def test_simultaneous_requests_share_a_run_and_errors_stay_separate(packaged, metrics) -> None:
    """Valid rows, invalid rows and a category that only the encoder rejects, all at once."""
    application = Application(Limits(), metrics)
    application.use_version(LoadedVersion(packaged(refuse_unknown=True)))
    batch_sizes: list[int] = []
    application.batch_listeners.append(lambda batch: batch_sizes.append(len(batch.outputs)))
    bodies = [{"rows": [{**ROW, "age": age}] * (1 + age % 3)} for age in range(20, 40)]
    bodies[3] = {"rows": [{**ROW, "age": 500}]}
    bodies[7] = {"rows": [{**ROW, "town": "nowhere"}]}

    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))

    responses = asyncio.run(call())
    batch_sizes.clear()
    del bodies[7]
    asyncio.run(call())
    assert max(batch_sizes) > 20
    bodies.insert(7, {"rows": [{**ROW, "town": "nowhere"}]})
    assert [response.status_code for response in responses] == [422 if index in (3, 7) else 200 for index in range(20)]
    assert "nowhere" in responses[7].json()["error"]
    for index, (response, body) in enumerate(zip(responses, bodies, strict=True)):
        if index not in (3, 7):
            assert response.json()["predictions"] == ask(application, body).json()["predictions"]


def test_a_request_beyond_the_limit_of_waiting_ones_gets_503(version, metrics) -> None:
    application = Application(Limits(waiting=3), metrics)
    application.use_version(version)

    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await asyncio.gather(*(client.post("/predict", json={"rows": [ROW]}) for _ in range(10)))

    responses = asyncio.run(call())
    assert {response.status_code for response in responses} == {200, 503}
    rejected = [response for response in responses if response.status_code == 503]
    assert all(response.headers["retry-after"] == "1" for response in rejected)
    assert ask(application, {"rows": [ROW]}).status_code == 200


def test_an_endpoint_without_a_version_returns_503(metrics) -> None:
    assert ask(Application(Limits(), metrics), {"rows": [ROW]}).status_code == 503


def test_explanations_are_counted_beside_predictions(application) -> None:
    def read_counters() -> list[float]:
        names = ("bloomery_explanations_total", "bloomery_requests_total")
        return [REGISTRY.get_sample_value(name, {"status": status}) or 0 for name in names for status in ("200", "422")]

    before = read_counters()
    ask(application, {"rows": [ROW]}, path="/explain")
    ask(application, {"rows": [{**ROW, "age": 500}]}, path="/explain")
    assert [after - value for after, value in zip(read_counters(), before, strict=True)] == [1, 1, 0, 0]


def test_the_openapi_page_has_types_limits_and_examples(application) -> None:
    document = ask(application, b"", path="/openapi.json", method="GET").json()
    row = document["components"]["schemas"]["Row"]
    assert row["properties"]["age"] == {"type": "integer", "minimum": 0, "maximum": 120}
    assert row["properties"]["town"] == {"type": "string", "pattern": "^[a-z]+$"}
    height = {"type": "number", "minimum": 0.5, "exclusiveMaximum": 3.0}
    assert row["properties"]["height"] == {"anyOf": [height, {"type": "null"}]}
    assert (row["required"], row["additionalProperties"]) == (["age", "town"], False)
    page = ask(application, b"", path="/docs", method="GET")
    assert "<title>made</title>" in page.text
    assert "swagger-ui-bundle.js" in page.text
    assert ask(application, b"", path="/docs/swagger-ui-bundle.js", method="GET").status_code == 200


def test_info_has_the_contract_and_the_score_of_the_version(application) -> None:
    info = ask(application, b"", path="/info", method="GET").json()
    assert (info["model"], info["contract"]) == ("people:one", {"name": "made", "version": "1.0.0"})
    assert info["test_score"]["value"] == 0.9


def test_the_model_card_is_served_with_a_strict_security_policy(application, packaged) -> None:
    assert ask(application, b"", path="/card", method="GET").status_code == 404  # packaged without one
    assert "/card" not in ask(application, b"", path="/openapi.json", method="GET").json()["paths"]
    folder = packaged()
    (folder / "card").mkdir()
    (folder / "card" / "card.html").write_text("<h1>people</h1>")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["card/card.html"] = digest_of_file(folder / "card" / "card.html")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    application.use_version(LoadedVersion(folder))
    page = ask(application, b"", path="/card", method="GET")
    assert (page.text, page.headers["content-type"]) == ("<h1>people</h1>", "text/html; charset=utf-8")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; img-src data:;")
    assert "/card" in ask(application, b"", path="/openapi.json", method="GET").json()["paths"]
    (folder / "card" / "card.html").write_text("<h1>another</h1>")
    with pytest.raises(OutputCorrupt, match=r"card/card\.html differs from the packaged file"):
        LoadedVersion(folder)


TOWNS = st.sampled_from(["york", "bath"]) | st.from_regex(r"[a-z]+", fullmatch=True)
ANY_ROW = st.fixed_dictionaries(
    {"age": st.integers(0, 120), "town": TOWNS},
    optional={"height": st.none() | st.floats(0.5, 3.0, exclude_max=True) | st.integers(1, 2)},
)


@settings(deadline=None, max_examples=examples(50), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ANY_ROW, min_size=1, max_size=5))
def test_predictions_equal_those_of_the_network_in_this_process(application, version, rows) -> None:
    table = pa.Table.from_pylist(rows, schema=version.row_check.schema)
    logits = create_session(version.artifacts / "model.onnx").run(None, {"x": encode(version.encoder, table)})[0]
    expected = softmax(logits)
    predictions = ask(application, {"rows": rows}).json()["predictions"]
    assert [list(prediction["probabilities"].values()) for prediction in predictions] == expected.tolist()
    labels = list(version.encoder.classes)
    assert [prediction["label"] for prediction in predictions] == [labels[best] for best in expected.argmax(axis=1)]


@pytest.mark.parametrize("chunks", [[], [b'{"rows"'], [b'{"rows"', b": "]], ids=["nothing", "a chunk", "two chunks"])
def test_an_incomplete_body_times_out(version, metrics, chunks) -> None:
    application = Application(Limits(body_seconds=0.05), metrics)
    application.use_version(version)
    assert asyncio.run(send_chunks(application, chunks, last_chunk=None)) == 408


@pytest.mark.parametrize("num_chunks", [1, 2, 7])
def test_a_body_in_late_chunks_is_read_completely(application, num_chunks) -> None:
    body = json.dumps({"rows": [ROW]}).encode()
    size = -(-len(body) // num_chunks)
    chunks = [body[start : start + size] for start in range(0, len(body), size)]
    assert asyncio.run(send_chunks(application, chunks[:-1], last_chunk=chunks[-1])) == 200


async def send_chunks(application: Application, chunks: list[bytes], last_chunk: bytes | None) -> int | None:
    """The status of a request whose body arrives in late chunks; the last one may never arrive."""
    messages = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    responses: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0 if messages or last_chunk is not None else 60)
        return messages.pop(0) if messages else {"type": "http.request", "body": last_chunk}

    async def send(message: Any) -> None:
        responses.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"content-type", b"application/json")]}
    await application(scope, receive, send)
    return responses[0]["status"] if responses else None


def test_a_client_that_disconnects_early_gets_no_response(application) -> None:
    async def call() -> list[Any]:
        responses: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            responses.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        await application(scope, receive, send)
        return responses

    assert asyncio.run(call()) == []
