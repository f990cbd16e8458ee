"""The endpoint without a server: what is answered, what is refused, and that nobody's bad row is another's."""

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
from bloomery.data_contracts.requests.arrow_rows import MEDIA_TYPE as ARROW
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import Version
from bloomery.deployments.endpoint.telemetry.metrics import Measures
from bloomery.models.features.encoder import encode
from bloomery.models.inference.runtime import create_session, softmax

ROW = {"age": 30, "height": 1.7, "town": "york"}
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def version(packaged: Callable[..., Path]) -> Version:
    return Version(packaged())


@pytest.fixture(scope="module")
def application(version: Version, measures: Measures) -> Application:
    application = Application(Limits(body_bytes=20_000, rows=100, waiting=64), measures)
    application.use(version)
    return application


def ask(application: Application, body: Any, path: str = "/predict", method: str = "POST", **headers: str) -> Any:
    """The response to one request; a body that is no bytes is sent as JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.request(method, path, content=content, headers={**JSON, **named})

    return asyncio.run(call())


def stream_of(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue().to_pybytes()


def test_rows_are_answered_in_order_with_label_shares_and_version(application: Application) -> None:
    told = ask(application, {"rows": [ROW, {**ROW, "age": 70}, {"age": 5, "town": "nowhere"}]})
    assert told.status_code == 200
    document = told.json()
    assert [one["label"] for one in document["predictions"]] == ["young", "old", "young"]
    for one in document["predictions"]:
        assert sum(one["probabilities"].values()) == pytest.approx(1)
        assert one["probabilities"][one["label"]] == max(one["probabilities"].values())
    assert document["model"] == told.headers["x-model-version"] == "people:one"
    assert told.headers["content-type"] == "application/json"


def test_a_request_keeps_its_own_id_if_that_is_a_plain_word(application: Application) -> None:
    assert ask(application, {"rows": [ROW]}, x_request_id="order-7").headers["x-request-id"] == "order-7"
    made = ask(application, {"rows": [ROW]}, x_request_id="a b\tc").headers["x-request-id"]
    assert made != "a b\tc"
    assert made != ask(application, {"rows": [ROW]}).headers["x-request-id"]


REFUSED: list[tuple[str, Any, int, str]] = [
    ("a missing column", {"rows": [{"age": 3}]}, 422, "row 0, column town: found nothing, but the column is required"),
    ("an extra column", {"rows": [{**ROW, "label": "old"}]}, 422, "column label: found 'old', but the contract has no"),
    ("a number as text", {"rows": [{**ROW, "age": "30"}]}, 422, "column age: found '30', but input should be a valid"),
    ("a boolean", {"rows": [{**ROW, "age": True}]}, 422, "column age: found True"),
    ("a share of a year", {"rows": [{**ROW, "age": 30.5}]}, 422, "column age: found 30.5"),
    ("out of range", {"rows": [{**ROW, "age": 121}]}, 422, "column age: found 121, but input should be less than"),
    ("at an excluded limit", {"rows": [{**ROW, "height": 3.0}]}, 422, "column height: found 3.0"),
    ("null where it may not be", {"rows": [{**ROW, "age": None}]}, 422, "column age: found None"),
    ("another pattern", {"rows": [{**ROW, "town": "York"}]}, 422, "column town: found 'York', but must match ^[a-z]+$"),
    ("the second row", {"rows": [ROW, {**ROW, "age": -1}]}, 422, "row 1, column age: found -1"),
    ("no rows", {"rows": []}, 422, "the request: found"),
    ("a row that is a list", {"rows": [[1, 2, 3]]}, 422, "row 0"),
    ("a cell that is a list", {"rows": [{**ROW, "age": [30]}]}, 422, "column age"),
    ("rows that are an object", {"rows": ROW}, 422, "the request"),
    ("no object", [ROW], 422, "the request"),
    ("something beside rows", {"rows": [ROW], "more": 1}, 422, "the request"),
    ("NaN", b'{"rows": [{"age": 30, "height": NaN, "town": "york"}]}', 422, "column height"),
    ("infinity", b'{"rows": [{"age": 30, "height": -Infinity, "town": "york"}]}', 422, "column height"),
    ("1e400", b'{"rows": [{"age": 30, "height": 1e400, "town": "york"}]}', 422, "column height"),
    ("a huge whole number", b'{"rows": [{"age": ' + b"9" * 400 + b', "town": "york"}]}', 422, "column age"),
    ("half a surrogate", b'{"rows": [{"age": 30, "town": "\\ud800"}]}', 400, "cannot be read"),
    ("half of an object", b'{"rows": [{"age": 30', 400, "cannot be read"),
    ("no JSON", b"rows", 400, "cannot be read"),
    ("bytes of no text", b'{"rows": [{"age": 30, "town": "\xff"}]}', 400, "cannot be read"),
    ("an empty body", b"", 400, "the body is empty"),
    ("too many rows", {"rows": [ROW] * 101}, 413, "101 rows, and at most 100 are answered at once"),
    ("too long a body", b" " * 20_001, 413, "20,001 bytes, and at most 20,000 bytes are read"),
    ("deep nesting", b'{"rows": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "cannot be read"),
]


@pytest.mark.parametrize(("what", "body", "status", "said"), REFUSED, ids=[one[0] for one in REFUSED])
def test_a_bad_request_is_told_what_is_wrong_where(application, what, body, status, said) -> None:
    told = ask(application, body)
    assert (told.status_code, set(told.json())) == (status, {"error", "problems"}), told.text
    assert said in told.json()["error"]
    if status == 422:
        assert all(set(problem) == {"row", "column", "found", "rule"} for problem in told.json()["problems"])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content_type": "text/csv"}, 415),
        ({"content_type": ""}, 415),
        ({"content_encoding": "gzip"}, 415),
        ({"content_type": "application/json; charset=utf-8"}, 200),
    ],
)
def test_only_known_content_types_are_read(application, headers, status) -> None:
    assert ask(application, {"rows": [ROW]}, **headers).status_code == status


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_rows_are_sent_by_post(application, method) -> None:
    told = ask(application, {"rows": [ROW]}, method=method)
    assert (told.status_code, told.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(("path", "status"), [("/info", 405), ("/nowhere", 404)])
def test_pages_are_read_by_get(application, path, status) -> None:
    told = ask(application, b"", path=path, method="TRACE")
    assert (told.status_code, told.headers.get("allow")) == (status, "GET, HEAD" if status == 405 else None)


@pytest.mark.parametrize("path", ["/nowhere", "/predict/", "/docs/../secret", "/docs/index.html"])
def test_other_paths_are_not_there(application, path) -> None:
    assert ask(application, b"", path=path, method="GET").status_code == 404


def test_a_chunked_body_is_cut_off_at_the_limit(application) -> None:
    num_sent = 0

    async def call() -> httpx.Response:
        async def pieces() -> AsyncIterator[bytes]:
            nonlocal num_sent
            for _ in range(100):
                num_sent += 1
                yield b" " * 1000

        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await client.post("/predict", content=pieces(), headers=JSON)

    assert asyncio.run(call()).status_code == 413
    assert num_sent < 30


def test_rows_as_an_arrow_stream_are_answered_as_in_json(application, version) -> None:
    rows = [ROW, {"age": 70, "height": None, "town": "bath"}]
    table = pa.Table.from_pylist(rows, schema=version.check.schema)
    in_json = ask(application, {"rows": rows}).json()
    assert ask(application, stream_of(table), content_type=ARROW).json() == in_json
    # Any width of number, text as a dictionary, any order of columns, and an optional column left out.
    other = pa.table(
        {
            "town": pa.array(["york", "bath"]).dictionary_encode(),
            "age": pa.array([30, 70], pa.int16()),
            "height": pa.array([1.7, None], pa.float64()),
        }
    )
    assert ask(application, stream_of(other), content_type=ARROW).json() == in_json
    told = ask(application, stream_of(table), content_type=ARROW, accept=ARROW)
    assert told.headers["content-type"] == ARROW
    answered = pa.ipc.open_stream(told.content).read_all()
    assert answered["label"].to_pylist() == [one["label"] for one in in_json["predictions"]]
    assert answered["probabilities"].to_pylist() == [
        list(one["probabilities"].values()) for one in in_json["predictions"]
    ]
    assert json.loads(answered.schema.metadata[b"classes"]) == list(in_json["predictions"][0]["probabilities"])


TABLE = pa.table({"age": [30, 70], "height": [1.7, 1.6], "town": ["york", "bath"]})
BAD_STREAMS: list[tuple[str, bytes, int, str]] = [
    ("half", stream_of(TABLE)[:-200], 400, "no whole Arrow stream"),
    ("noise", b"ARROW1" * 50, 400, "no whole Arrow stream"),
    ("no rows", stream_of(TABLE.slice(0, 0)), 422, "there must be at least one"),
    ("a column missing", stream_of(TABLE.drop_columns(["age"])), 422, "column age: found nothing"),
    ("a column more", stream_of(TABLE.append_column("label", pa.array(["a", "b"]))), 422, "no such column"),
    ("text for a number", stream_of(TABLE.set_column(0, "age", pa.array(["1", "2"]))), 422, "column age: found string"),
    ("too old", stream_of(TABLE.set_column(0, "age", pa.array([30, 121]))), 422, "row 1, column age: found 121"),
    ("null", stream_of(TABLE.set_column(0, "age", pa.array([30, None]))), 422, "row 1, column age: found null"),
    ("NaN", stream_of(TABLE.set_column(1, "height", pa.array([1.7, np.nan]))), 422, "row 1, column height"),
    ("a share", stream_of(TABLE.set_column(0, "age", pa.array([30.0, 30.5]))), 422, "row 1, column age: found 30.5"),
    ("a pattern", stream_of(TABLE.set_column(2, "town", pa.array(["york", "Y"]))), 422, "row 1, column town: found Y"),
    ("too many", stream_of(pa.concat_tables([TABLE] * 51)), 422, "at most 100 are answered at once"),
]


@pytest.mark.parametrize(("what", "body", "status", "said"), BAD_STREAMS, ids=[one[0] for one in BAD_STREAMS])
def test_a_bad_arrow_stream_is_told_what_is_wrong_where(application, what, body, status, said) -> None:
    told = ask(application, body, content_type=ARROW)
    assert told.status_code == status, told.text
    assert said in told.json()["error"]


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=st.binary(max_size=300), start=st.integers(0, 400), is_arrow=st.booleans())
def test_whatever_bytes_come_no_answer_is_a_fault(application, body, start, is_arrow) -> None:
    whole = stream_of(TABLE) if is_arrow else json.dumps({"rows": [ROW]}).encode()
    changed = whole[:start] + body + whole[start + len(body) :]
    told = ask(application, changed, content_type=ARROW if is_arrow else "application/json")
    assert told.status_code in (200, 400, 422), told.text


def test_clients_of_one_moment_are_answered_together_and_each_by_itself(packaged, measures) -> None:
    """Good rows, bad rows and a category that only encoding refuses, all at once."""
    application = Application(Limits(), measures)
    application.use(Version(packaged(refuse_unknown=True)))
    together: list[int] = []
    application.on_answered.append(lambda answered: together.append(len(answered.given)))
    bodies = [{"rows": [{**ROW, "age": age}] * (1 + age % 3)} for age in range(20, 40)]
    bodies[3] = {"rows": [{**ROW, "age": 500}]}
    bodies[7] = {"rows": [{**ROW, "town": "nowhere"}]}

    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await asyncio.gather(*(client.post("/predict", json=body) for body in bodies))

    told = asyncio.run(call())
    together.clear()
    del bodies[7]
    asyncio.run(call())
    assert max(together) > 20
    bodies.insert(7, {"rows": [{**ROW, "town": "nowhere"}]})
    assert [one.status_code for one in told] == [422 if place in (3, 7) else 200 for place in range(20)]
    assert "nowhere" in told[7].json()["error"]
    for place, (one, body) in enumerate(zip(told, bodies, strict=True)):
        if place not in (3, 7):
            assert one.json()["predictions"] == ask(application, body).json()["predictions"]


def test_who_comes_while_too_many_wait_is_told_to_come_again(version, measures) -> None:
    application = Application(Limits(waiting=3), measures)
    application.use(version)

    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            return await asyncio.gather(*(client.post("/predict", json={"rows": [ROW]}) for _ in range(10)))

    told = asyncio.run(call())
    assert {one.status_code for one in told} == {200, 503}
    assert all(one.headers["retry-after"] == "1" for one in told if one.status_code == 503)
    assert ask(application, {"rows": [ROW]}).status_code == 200


def test_an_endpoint_without_a_version_says_so(measures) -> None:
    assert ask(Application(Limits(), measures), {"rows": [ROW]}).status_code == 503


def test_explanations_are_counted_beside_predictions(application) -> None:
    def counted() -> list[float]:
        names = ("bloomery_explanations_total", "bloomery_requests_total")
        return [REGISTRY.get_sample_value(name, {"status": status}) or 0 for name in names for status in ("200", "422")]

    before = counted()
    ask(application, {"rows": [ROW]}, path="/explain")
    ask(application, {"rows": [{**ROW, "age": 500}]}, path="/explain")
    assert [after - one for after, one in zip(counted(), before, strict=True)] == [1, 1, 0, 0]


def test_the_openapi_page_has_types_limits_and_examples(application) -> None:
    document = ask(application, b"", path="/openapi.json", method="GET").json()
    row = document["components"]["schemas"]["Row"]
    assert row["properties"]["age"] == {"type": "integer", "minimum": 0, "maximum": 120}
    assert row["properties"]["town"] == {"type": "string", "pattern": "^[a-z]+$"}
    height = {"type": "number", "minimum": 0.5, "exclusiveMaximum": 3.0}
    assert row["properties"]["height"] == {"anyOf": [height, {"type": "null"}]}
    assert (row["required"], row["additionalProperties"]) == (["age", "town"], False)
    page = ask(application, b"", path="/docs", method="GET")
    assert "swagger-ui-bundle.js" in page.text
    assert ask(application, b"", path="/docs/swagger-ui-bundle.js", method="GET").status_code == 200


def test_the_card_says_where_the_version_comes_from(application) -> None:
    card = ask(application, b"", path="/info", method="GET").json()
    assert (card["model"], card["contract"]) == ("people:one", {"name": "made", "version": "1.0.0"})
    assert card["test_score"]["value"] == 0.9


def test_the_model_card_is_shown_and_can_do_nothing(application, packaged) -> None:
    assert ask(application, b"", path="/card", method="GET").status_code == 404  # it was packaged without
    assert "/card" not in ask(application, b"", path="/openapi.json", method="GET").json()["paths"]
    folder = packaged()
    (folder / "card").mkdir()
    (folder / "card" / "card.html").write_text("<h1>people</h1>")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["card/card.html"] = digest_of_file(folder / "card" / "card.html")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    application.use(Version(folder))
    shown = ask(application, b"", path="/card", method="GET")
    assert (shown.text, shown.headers["content-type"]) == ("<h1>people</h1>", "text/html; charset=utf-8")
    assert shown.headers["content-security-policy"].startswith("default-src 'none'; img-src data:;")
    assert "/card" in ask(application, b"", path="/openapi.json", method="GET").json()["paths"]
    (folder / "card" / "card.html").write_text("<h1>another</h1>")
    with pytest.raises(OutputCorrupt, match=r"card/card\.html is not the file that was packaged"):
        Version(folder)


TOWNS = st.sampled_from(["york", "bath"]) | st.from_regex(r"[a-z]+", fullmatch=True)
ANY_ROW = st.fixed_dictionaries(
    {"age": st.integers(0, 120), "town": TOWNS},
    optional={"height": st.none() | st.floats(0.5, 3.0, exclude_max=True) | st.integers(1, 2)},
)


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ANY_ROW, min_size=1, max_size=5))
def test_any_rows_are_answered_as_the_network_answers_in_this_process(application, version, rows) -> None:
    table = pa.Table.from_pylist(rows, schema=version.check.schema)
    logits = create_session(version.artifacts / "model.onnx").run(None, {"x": encode(version.encoder, table)})[0]
    wanted = softmax(logits)
    told = ask(application, {"rows": rows}).json()["predictions"]
    assert [list(one["probabilities"].values()) for one in told] == wanted.tolist()
    labels = list(version.encoder.classes)
    assert [one["label"] for one in told] == [labels[best] for best in wanted.argmax(axis=1)]


@pytest.mark.parametrize("sent", [[], [b'{"rows"'], [b'{"rows"', b": "]], ids=["nothing", "a piece", "two pieces"])
def test_a_body_that_does_not_come_is_not_waited_for(version, measures, sent) -> None:
    application = Application(Limits(body_seconds=0.05), measures)
    application.use(version)
    assert asyncio.run(told_of_pieces(application, sent, then=None)) == 408


@pytest.mark.parametrize("num_pieces", [1, 2, 7])
def test_a_body_in_late_pieces_is_read_whole(application, num_pieces) -> None:
    body = json.dumps({"rows": [ROW]}).encode()
    size = -(-len(body) // num_pieces)
    sent = [body[start : start + size] for start in range(0, len(body), size)]
    assert asyncio.run(told_of_pieces(application, sent[:-1], then=sent[-1])) == 200


async def told_of_pieces(application: Application, sent: list[bytes], then: bytes | None) -> int | None:
    """The status of a request whose body comes in pieces, each later than it is asked for; the last may never come."""
    coming = [{"type": "http.request", "body": piece, "more_body": True} for piece in sent]
    told: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0 if coming or then is not None else 60)
        return coming.pop(0) if coming else {"type": "http.request", "body": then}

    async def send(message: Any) -> None:
        told.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "headers": [(b"content-type", b"application/json")]}
    await application(scope, receive, send)
    return told[0]["status"] if told else None


def test_a_client_that_goes_before_its_body_is_there_is_told_nothing(application) -> None:
    async def call() -> list[Any]:
        told: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            told.append(message)

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
        await application(scope, receive, send)
        return told

    assert asyncio.run(call()) == []
