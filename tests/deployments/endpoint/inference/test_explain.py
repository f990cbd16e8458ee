"""`/explain` without a server: contributions of columns, rejected requests and limits of cost."""

from __future__ import annotations

import asyncio
import builtins
import itertools
import json
import math
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bloomery.data_contracts.requests.arrow_rows import ARROW_MEDIA_TYPE as ARROW
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.errors import HTTPError
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.explain import Explainer
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from tests.examples import examples

ROW = {"age": 30, "height": 1.7, "town": "york"}
COLUMNS = ("age", "height", "town")


class NoMetrics:
    """Metrics without effect; real ones can be created once per process."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture(scope="module")
def folder(packaged: Callable[..., Path]) -> Path:
    return packaged(weighs_all=True)


@pytest.fixture(scope="module")
def version(folder: Path) -> LoadedVersion:
    return LoadedVersion(folder)


@pytest.fixture(scope="module")
def regression(packaged: Callable[..., Path]) -> LoadedVersion:
    return LoadedVersion(packaged(weighs_all=True, is_regression=True))


def create_application(version: LoadedVersion, limits: Limits | None = None) -> Application:
    application = Application(limits or Limits(), NoMetrics())  # type: ignore[arg-type]
    application.use_version(version)
    return application


def ask_all(application: Application, bodies: Sequence[Any], path: str = "/explain", **headers: str) -> Any:
    header_fields = {"content-type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }

    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            contents = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
            return await asyncio.gather(
                *(client.post(path, content=content, headers=header_fields) for content in contents)
            )

    return asyncio.run(call())


def ask(application: Application, body: Any, path: str = "/explain", **headers: str) -> httpx.Response:
    return ask_all(application, [body], path, **headers)[0]


def get(application: Application, path: str) -> httpx.Response:
    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://endpoint") as client:
            return await client.get(path)

    return asyncio.run(call())


def explain_rows(version: LoadedVersion, *rows: dict[str, Any], path: str = "/explain") -> list[dict[str, Any]]:
    response = ask(create_application(version), {"rows": list(rows)}, path)
    assert response.status_code == 200, response.text
    return response.json()["explanations"]


def compute_shapley_values(
    version: LoadedVersion, folder: Path, row: dict[str, Any], target: int
) -> tuple[float, dict[str, float]]:
    """Returns base value and Shapley values by their definition, over raw rows with exchanged columns."""
    background = json.loads((folder / "background.json").read_text())

    def value(subset: frozenset[str]) -> float:
        rows = [{name: (row if name in subset else behind).get(name) for name in COLUMNS} for behind in background]
        return float(version.predict(version.row_check.parse_table(rows).to_batches()[0])[:, target].mean())

    contributions = {}
    for name in COLUMNS:
        other_columns = [column for column in COLUMNS if column != name]
        contributions[name] = sum(
            math.factorial(size)
            * math.factorial(len(other_columns) - size)
            / math.factorial(len(COLUMNS))
            * (value(frozenset({*subset, name})) - value(frozenset(subset)))
            for size in range(len(other_columns) + 1)
            for subset in itertools.combinations(other_columns, size)
        )
    return value(frozenset()), contributions


@pytest.mark.parametrize("row", [ROW, {"age": 90, "height": None, "town": "bath"}, {"age": 1, "town": "nowhere"}])
def test_contributions_are_shapley_values_of_the_raw_columns(version, folder, row) -> None:
    (explanation,) = explain_rows(version, row)
    prediction = version.format_predictions(version.predict(version.row_check.parse_table([row]).to_batches()[0]))[0]
    base, values = compute_shapley_values(version, folder, row, version.encoder.classes.index(explanation["label"]))
    assert (explanation["label"], explanation["is_exact"]) == (prediction["label"], True)
    assert explanation["output"] == pytest.approx(prediction["probabilities"][explanation["label"]], abs=1e-6)
    assert explanation["base_value"] == pytest.approx(base, abs=1e-6)
    assert explanation["contributions"] == pytest.approx(values, abs=1e-6)
    assert "regions" not in explanation


def test_contributions_of_a_linear_regression_are_in_the_unit_of_the_label(regression) -> None:
    older, taller = {**ROW, "age": 40}, {**ROW, "height": 1.8}
    first, second, third = explain_rows(regression, ROW, older, taller)
    values = [item["output"] for item in (first, second, third)]
    predictions = ask(create_application(regression), {"rows": [ROW, older, taller]}, "/predict").json()["predictions"]
    assert values == pytest.approx([item["value"] for item in predictions], rel=1e-6)
    assert "label" not in first
    # The network is linear: a contribution changes by exactly as much as the output.
    for column, explanation in (("age", second), ("height", third)):
        change = explanation["contributions"][column] - first["contributions"][column]
        assert change == pytest.approx(explanation["output"] - first["output"], abs=1e-6)
        unchanged = [name for name in COLUMNS if name != column]
        assert [explanation["contributions"][name] for name in unchanged] == pytest.approx(
            [first["contributions"][name] for name in unchanged], abs=1e-6
        )


def test_contributions_of_two_classes_are_opposite(version) -> None:
    (for_old,), (for_young,) = (
        explain_rows(version, ROW, path=f"/explain?label={label}") for label in ("old", "young")
    )
    assert (for_old["label"], for_young["label"]) == ("old", "young")
    assert for_old["output"] + for_young["output"] == pytest.approx(1)
    for name in COLUMNS:
        assert for_old["contributions"][name] == pytest.approx(-for_young["contributions"][name])


ROWS = st.fixed_dictionaries(
    {"age": st.integers(0, 120), "town": st.from_regex(r"[a-z]{1,8}", fullmatch=True)},
    optional={"height": st.one_of(st.none(), st.floats(0.5, 2.99))},
)


@settings(deadline=None, max_examples=examples(40), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=3), evaluations=st.sampled_from([1, 20, 100]))
def test_base_value_and_contributions_add_up_to_the_output(version, rows, evaluations) -> None:
    application = create_application(version, Limits(explain_evaluations=evaluations))
    explanations = ask(application, {"rows": rows}).json()["explanations"]
    predictions = ask(application, {"rows": rows}, "/predict").json()["predictions"]
    for explanation, prediction in zip(explanations, predictions, strict=True):
        assert explanation["output"] == pytest.approx(
            explanation["base_value"] + sum(explanation["contributions"].values()), abs=1e-9
        )
        assert explanation["output"] == pytest.approx(prediction["probabilities"][explanation["label"]], abs=1e-6)


def test_an_explanation_does_not_depend_on_the_other_rows(folder) -> None:
    limits, row = Limits(explain_evaluations=7), {"age": 44, "height": 1.75, "town": "bath"}  # orders are sampled
    first = ask(create_application(LoadedVersion(folder), limits), {"rows": [row]}).json()["explanations"]
    np.random.seed(7)
    state = np.random.get_state()[1]
    again = ask(create_application(LoadedVersion(folder), limits), {"rows": [{**row, "age": 80}, row]}).json()[
        "explanations"
    ]
    assert not first[0]["is_exact"]
    assert first[0] == again[1]
    assert np.array_equal(np.random.get_state()[1], state)


def test_an_arrow_stream_gets_the_same_explanations(version) -> None:
    table = pa.Table.from_pylist([ROW], schema=version.row_check.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    response = ask(create_application(version), sink.getvalue().to_pybytes(), content_type=ARROW)
    assert response.json() == {"explanations": explain_rows(version, ROW), "model": "people:one"}
    assert response.headers["x-model-version"] == "people:one"


CASE_FIELDS = ("case", "body", "query", "status", "message")
INVALID_REQUESTS: list[tuple[str, Any, str, int, str]] = [
    ("an invalid row", {"rows": [ROW, {**ROW, "age": 500}]}, "", 422, "row 1, column age: found 500"),
    ("an unknown column", {"rows": [{**ROW, "label": "old"}]}, "", 422, "the contract has no such column"),
    ("not JSON", b"rows", "", 400, "cannot be read"),
    ("an empty body", b"", "", 400, "the body is empty"),
    ("too many rows", {"rows": [ROW] * 17}, "", 413, "17 rows; the limit is 16"),
    ("an unknown class", {"rows": [ROW]}, "?label=middle", 422, "'middle', but must be one of old, young"),
    ("two classes", {"rows": [ROW]}, "?label=old&label=young", 422, "one class is explained at a time"),
    ("another parameter", {"rows": [ROW]}, "?lable=old", 422, "'lable', but the only parameter is label"),
]


@pytest.mark.parametrize(CASE_FIELDS, INVALID_REQUESTS, ids=[case[0] for case in INVALID_REQUESTS])
def test_an_invalid_request_gets_an_error_with_its_problems(version, case, body, query, status, message) -> None:
    response = ask(create_application(version), body, f"/explain{query}")
    assert (response.status_code, set(response.json())) == (status, {"error", "problems"}), response.text
    assert message in response.json()["error"]


def test_a_regression_has_no_label_to_ask_for(regression) -> None:
    response = ask(create_application(regression), {"rows": [ROW]}, "/explain?label=old")
    assert (response.status_code, "has no label" in response.json()["error"]) == (422, True)


def test_a_category_that_the_encoder_rejects_gets_422(packaged) -> None:
    response = ask(
        create_application(LoadedVersion(packaged(refuse_unknown=True))), {"rows": [{**ROW, "town": "nowhere"}]}
    )
    assert (response.status_code, "nowhere" in response.json()["error"]) == (422, True)


def test_explain_requires_post(version) -> None:
    response = get(create_application(version), "/explain")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


def test_one_explanation_runs_at_a_time_and_others_get_503(version, monkeypatch) -> None:
    has_started, may_end = threading.Event(), threading.Event()
    predict_encoded = LoadedVersion.predict_encoded

    def slow(self: LoadedVersion, x: np.ndarray) -> np.ndarray:
        has_started.set()
        assert may_end.wait(10)
        return predict_encoded(self, x)

    application = create_application(version)
    batch = version.row_check.parse_table([ROW]).to_batches()[0]
    monkeypatch.setattr(LoadedVersion, "predict_encoded", slow)
    first = threading.Thread(target=lambda: asyncio.run(application._explainer.explain(version, batch, b"")))
    first.start()
    assert has_started.wait(10)
    response = ask(application, {"rows": [ROW]})
    may_end.set()
    first.join()
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "another explanation is running" in response.json()["error"]
    assert ask(application, {"rows": [ROW]}).status_code == 200


def test_predictions_are_served_while_rows_are_explained(version, monkeypatch) -> None:
    predict_encoded, explaining = LoadedVersion.predict_encoded, threading.Event()

    def slow(self: LoadedVersion, x: np.ndarray) -> np.ndarray:
        if threading.current_thread() is not threading.main_thread():
            explaining.set()
            time.sleep(0.2)
        return predict_encoded(self, x)

    application = create_application(version)
    monkeypatch.setattr(LoadedVersion, "predict_encoded", slow)

    async def call() -> tuple[httpx.Response, bool]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            explained = asyncio.create_task(client.post("/explain", json={"rows": [ROW]}))
            while not explaining.is_set():
                await asyncio.sleep(0.001)
            return await client.post("/predict", json={"rows": [ROW]}), explained.done()

    predicted, was_done = asyncio.run(call())
    assert (predicted.status_code, was_done) == (200, False)


def test_a_slow_explanation_ends_and_reports_its_progress(version, monkeypatch) -> None:
    predict_encoded = LoadedVersion.predict_encoded

    def slow(self: LoadedVersion, x: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return predict_encoded(self, x)

    application = create_application(version, Limits(explain_seconds=0.12))
    monkeypatch.setattr(LoadedVersion, "predict_encoded", slow)
    response = ask(application, {"rows": [ROW] * 10})
    assert response.status_code == 503
    assert "of 10 rows were explained within the limit of 0.12 s" in response.json()["error"]
    error = ask(create_application(version, Limits(explain_seconds=0.01)), {"rows": [ROW]}).json()["error"]
    assert error.startswith("0 of 1 rows")
    assert "BLOOMERY_SERVE_EXPLAIN_SECONDS raises the limit" in error  # fewer rows would not help
    monkeypatch.undo()
    assert ask(application, {"rows": [ROW]}).status_code == 200


def test_without_shap_the_status_is_501(version, monkeypatch) -> None:
    imports = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "shap":
            raise ImportError("No module named 'shap'")
        return imports(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    response = ask(create_application(version), {"rows": [ROW]})
    assert (response.status_code, "need the package shap" in response.json()["error"]) == (501, True)


def test_a_row_with_too_many_groups_is_not_explained(version, monkeypatch) -> None:
    monkeypatch.setattr("bloomery.deployments.endpoint.inference.explain._MAX_GROUPS", 2)
    batch = version.row_check.parse_table([ROW]).to_batches()[0]
    with pytest.raises(HTTPError, match="3 groups of features to weigh; at most 2 can be explained") as caught:
        asyncio.run(Explainer(Limits()).explain(version, batch, b""))
    assert caught.value.status == 501


def test_the_current_version_is_explained(version, packaged) -> None:
    application = create_application(version)
    ask(application, {"rows": [ROW]})
    application.use_version(LoadedVersion(packaged(tag="people:two", shift=3.0)))
    response = ask(application, {"rows": [ROW]}).json()
    assert response["model"] == "people:two"
    (explanation,) = response["explanations"]
    # In this version only the age has a weight.
    rise = explanation["output"] - explanation["base_value"]
    assert explanation["contributions"] == pytest.approx({"age": rise, "height": 0, "town": 0}, abs=1e-9)
    assert abs(rise) > 0.01


def test_the_openapi_page_describes_explanations(version, regression) -> None:
    document = get(create_application(version), "/openapi.json").json()
    operation = document["paths"]["/explain"]["post"]
    assert operation["parameters"][0]["schema"] == {"enum": ["old", "young"]}
    assert set(operation["responses"]) == {"200", "400", "405", "408", "413", "415", "422", "501", "503"}
    schema = document["components"]["schemas"]["Explanation"]
    assert schema["properties"]["contributions"]["required"] == list(COLUMNS)
    assert set(explain_rows(version, ROW)[0]) == set(schema["required"])
    of_regression = get(create_application(regression), "/openapi.json").json()
    assert "parameters" not in of_regression["paths"]["/explain"]["post"]


def test_shap_does_not_compile() -> None:
    """Compiling its functions would delay the first client by seconds."""
    import numba

    from bloomery.models.explainability.shapley import load_shap

    shap = load_shap()
    assert not isinstance(shap.explainers._exact._compute_grey_code_row_values, numba.core.dispatcher.Dispatcher)
    assert numba.config.DISABLE_JIT in (0, False)
