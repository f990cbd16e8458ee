"""`/explain` without a server: what each column adds, what is refused, and what it may cost."""

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

from bloomery.data_contracts.requests.arrow_rows import MEDIA_TYPE as ARROW
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.errors import Refused
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.explain import Explanations
from bloomery.deployments.endpoint.inference.model_version import Version

ROW = {"age": 30, "height": 1.7, "town": "york"}
COLUMNS = ("age", "height", "town")


class Silent:
    """Measures that nobody reads; the real ones can be made once in a process."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture(scope="module")
def folder(packaged: Callable[..., Path]) -> Path:
    return packaged(weighs_all=True)


@pytest.fixture(scope="module")
def version(folder: Path) -> Version:
    return Version(folder)


@pytest.fixture(scope="module")
def regression(packaged: Callable[..., Path]) -> Version:
    return Version(packaged(weighs_all=True, is_regression=True))


def serving(version: Version, limits: Limits | None = None) -> Application:
    application = Application(limits or Limits(), Silent())  # type: ignore[arg-type]
    application.use(version)
    return application


def ask_all(application: Application, bodies: Sequence[Any], path: str = "/explain", **headers: str) -> Any:
    named = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}

    async def call() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            contents = [body if isinstance(body, bytes) else json.dumps(body).encode() for body in bodies]
            return await asyncio.gather(*(client.post(path, content=one, headers=named) for one in contents))

    return asyncio.run(call())


def ask(application: Application, body: Any, path: str = "/explain", **headers: str) -> httpx.Response:
    return ask_all(application, [body], path, **headers)[0]


def get(application: Application, path: str) -> httpx.Response:
    async def call() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(application), base_url="http://endpoint") as client:
            return await client.get(path)

    return asyncio.run(call())


def explained(version: Version, *rows: dict[str, Any], path: str = "/explain") -> list[dict[str, Any]]:
    told = ask(serving(version), {"rows": list(rows)}, path)
    assert told.status_code == 200, told.text
    return told.json()["explanations"]


def by_hand(version: Version, folder: Path, row: dict[str, Any], target: int) -> tuple[float, dict[str, float]]:
    """Base and Shapley values by their definition, over raw rows in which columns are exchanged."""
    background = json.loads((folder / "background.json").read_text())

    def value(known: frozenset[str]) -> float:
        rows = [{name: (row if name in known else behind).get(name) for name in COLUMNS} for behind in background]
        return float(version.answers(version.check.table(rows).to_batches()[0])[:, target].mean())

    found = {}
    for name in COLUMNS:
        others = [other for other in COLUMNS if other != name]
        found[name] = sum(
            math.factorial(size)
            * math.factorial(len(others) - size)
            / math.factorial(len(COLUMNS))
            * (value(frozenset({*known, name})) - value(frozenset(known)))
            for size in range(len(others) + 1)
            for known in itertools.combinations(others, size)
        )
    return value(frozenset()), found


@pytest.mark.parametrize("row", [ROW, {"age": 90, "height": None, "town": "bath"}, {"age": 1, "town": "nowhere"}])
def test_contributions_are_shapley_values_of_the_raw_columns(version, folder, row) -> None:
    (found,) = explained(version, row)
    given = version.predictions(version.answers(version.check.table([row]).to_batches()[0]))[0]
    base, values = by_hand(version, folder, row, version.encoder.classes.index(found["label"]))
    assert (found["label"], found["is_exact"]) == (given["label"], True)
    assert found["answer"] == pytest.approx(given["probabilities"][found["label"]], abs=1e-6)
    assert found["base"] == pytest.approx(base, abs=1e-6)
    assert found["contributions"] == pytest.approx(values, abs=1e-6)
    assert "pieces" not in found


def test_of_a_linear_regression_each_column_adds_its_share_in_the_units_of_the_label(regression) -> None:
    older, taller = {**ROW, "age": 40}, {**ROW, "height": 1.8}
    first, second, third = explained(regression, ROW, older, taller)
    values = [one["answer"] for one in (first, second, third)]
    predicted = ask(serving(regression), {"rows": [ROW, older, taller]}, "/predict").json()["predictions"]
    assert values == pytest.approx([one["value"] for one in predicted], rel=1e-6)
    assert "label" not in first
    # The network is linear: what a column adds changes by exactly what the answer changes by.
    for column, other in (("age", second), ("height", third)):
        change = other["contributions"][column] - first["contributions"][column]
        assert change == pytest.approx(other["answer"] - first["answer"], abs=1e-6)
        unmoved = [name for name in COLUMNS if name != column]
        assert [other["contributions"][name] for name in unmoved] == pytest.approx(
            [first["contributions"][name] for name in unmoved], abs=1e-6
        )


def test_of_classes_that_exclude_each_other_what_speaks_for_one_speaks_against_the_other(version) -> None:
    (old,), (young,) = (explained(version, ROW, path=f"/explain?label={label}") for label in ("old", "young"))
    assert (old["label"], young["label"]) == ("old", "young")
    assert old["answer"] + young["answer"] == pytest.approx(1)
    for name in COLUMNS:
        assert old["contributions"][name] == pytest.approx(-young["contributions"][name])


ROWS = st.fixed_dictionaries(
    {"age": st.integers(0, 120), "town": st.from_regex(r"[a-z]{1,8}", fullmatch=True)},
    optional={"height": st.one_of(st.none(), st.floats(0.5, 2.99))},
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROWS, min_size=1, max_size=3), evaluations=st.sampled_from([1, 20, 100]))
def test_base_and_contributions_add_up_to_the_answer_however_few_are_asked(version, rows, evaluations) -> None:
    application = serving(version, Limits(explain_evaluations=evaluations))
    found = ask(application, {"rows": rows}).json()["explanations"]
    predicted = ask(application, {"rows": rows}, "/predict").json()["predictions"]
    for one, told in zip(found, predicted, strict=True):
        assert one["answer"] == pytest.approx(one["base"] + sum(one["contributions"].values()), abs=1e-9)
        assert one["answer"] == pytest.approx(told["probabilities"][one["label"]], abs=1e-6)


def test_the_same_row_is_explained_alike_beside_whatever_rows(folder) -> None:
    limits, row = Limits(explain_evaluations=7), {"age": 44, "height": 1.75, "town": "bath"}  # orders are drawn
    first = ask(serving(Version(folder), limits), {"rows": [row]}).json()["explanations"]
    np.random.seed(7)
    state = np.random.get_state()[1]
    again = ask(serving(Version(folder), limits), {"rows": [{**row, "age": 80}, row]}).json()["explanations"]
    assert not first[0]["is_exact"]
    assert first[0] == again[1]
    assert np.array_equal(np.random.get_state()[1], state)


def test_rows_may_come_as_an_arrow_stream(version) -> None:
    table = pa.Table.from_pylist([ROW], schema=version.check.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    told = ask(serving(version), sink.getvalue().to_pybytes(), content_type=ARROW)
    assert told.json() == {"explanations": explained(version, ROW), "model": "people:one"}
    assert told.headers["x-model-version"] == "people:one"


REFUSED: list[tuple[str, Any, str, int, str]] = [
    ("a bad row", {"rows": [ROW, {**ROW, "age": 500}]}, "", 422, "row 1, column age: found 500"),
    ("an unknown column", {"rows": [{**ROW, "label": "old"}]}, "", 422, "the contract has no such column"),
    ("no JSON", b"rows", "", 400, "cannot be read"),
    ("an empty body", b"", "", 400, "the body is empty"),
    ("too many rows", {"rows": [ROW] * 17}, "", 413, "17 rows, and at most 16 are answered at once"),
    ("an unknown class", {"rows": [ROW]}, "?label=middle", 422, "found 'middle', but must be one of old, young"),
    ("two classes", {"rows": [ROW]}, "?label=old&label=young", 422, "one class is explained at a time"),
    ("another parameter", {"rows": [ROW]}, "?lable=old", 422, "found 'lable', but there is no such parameter"),
]


@pytest.mark.parametrize(("what", "body", "query", "status", "said"), REFUSED, ids=[one[0] for one in REFUSED])
def test_a_bad_request_is_told_what_is_wrong_where(version, what, body, query, status, said) -> None:
    told = ask(serving(version), body, f"/explain{query}")
    assert (told.status_code, set(told.json())) == (status, {"error", "problems"}), told.text
    assert said in told.json()["error"]


def test_a_regression_has_no_label_to_ask_for(regression) -> None:
    told = ask(serving(regression), {"rows": [ROW]}, "/explain?label=old")
    assert (told.status_code, "has no label" in told.json()["error"]) == (422, True)


def test_a_category_that_the_recipe_refuses_is_refused(packaged) -> None:
    told = ask(serving(Version(packaged(refuse_unknown=True))), {"rows": [{**ROW, "town": "nowhere"}]})
    assert (told.status_code, "nowhere" in told.json()["error"]) == (422, True)


def test_rows_are_explained_by_post(version) -> None:
    told = get(serving(version), "/explain")
    assert (told.status_code, told.headers["allow"]) == (405, "POST")


def test_one_explanation_is_made_at_a_time_and_others_are_told_to_come_again(version, monkeypatch) -> None:
    inside, may_end = threading.Event(), threading.Event()
    answers = Version.answers_to

    def slow(self: Version, x: np.ndarray) -> np.ndarray:
        inside.set()
        assert may_end.wait(10)
        return answers(self, x)

    application = serving(version)
    batch = version.check.table([ROW]).to_batches()[0]
    monkeypatch.setattr(Version, "answers_to", slow)
    first = threading.Thread(target=lambda: asyncio.run(application._explanations.ask(version, batch, b"")))
    first.start()
    assert inside.wait(10)
    told = ask(application, {"rows": [ROW]})
    may_end.set()
    first.join()
    assert (told.status_code, told.headers["retry-after"]) == (503, "1")
    assert "an explanation is under way" in told.json()["error"]
    assert ask(application, {"rows": [ROW]}).status_code == 200


def test_predictions_are_answered_while_rows_are_explained(version, monkeypatch) -> None:
    answers, explaining = Version.answers_to, threading.Event()

    def slow(self: Version, x: np.ndarray) -> np.ndarray:
        if threading.current_thread() is not threading.main_thread():
            explaining.set()
            time.sleep(0.2)
        return answers(self, x)

    application = serving(version)
    monkeypatch.setattr(Version, "answers_to", slow)

    async def call() -> tuple[httpx.Response, bool]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            explained = asyncio.create_task(client.post("/explain", json={"rows": [ROW]}))
            while not explaining.is_set():
                await asyncio.sleep(0.001)
            return await client.post("/predict", json={"rows": [ROW]}), explained.done()

    predicted, was_done = asyncio.run(call())
    assert (predicted.status_code, was_done) == (200, False)


def test_what_takes_too_long_ends_and_says_how_far_it_came(version, monkeypatch) -> None:
    answers = Version.answers_to

    def slow(self: Version, x: np.ndarray) -> np.ndarray:
        time.sleep(0.05)
        return answers(self, x)

    application = serving(version, Limits(explain_seconds=0.12))
    monkeypatch.setattr(Version, "answers_to", slow)
    told = ask(application, {"rows": [ROW] * 10})
    assert told.status_code == 503
    assert "of 10 rows were explained within 0.12 s" in told.json()["error"]
    monkeypatch.undo()
    assert ask(application, {"rows": [ROW]}).status_code == 200


def test_where_shap_is_not_installed_the_answer_says_so(version, monkeypatch) -> None:
    imports = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "shap":
            raise ImportError("No module named 'shap'")
        return imports(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    told = ask(serving(version), {"rows": [ROW]})
    assert (told.status_code, "need the package shap" in told.json()["error"]) == (501, True)


def test_a_row_of_very_many_columns_is_not_explained(version, monkeypatch) -> None:
    monkeypatch.setattr("bloomery.deployments.endpoint.inference.explain._MOST_UNITS", 2)
    batch = version.check.table([ROW]).to_batches()[0]
    with pytest.raises(Refused, match="3 columns that are weighed one by one; at most 2 are explained") as refused:
        asyncio.run(Explanations(Limits()).ask(version, batch, b""))
    assert refused.value.status == 501


def test_the_version_in_use_is_the_one_that_is_explained(version, packaged) -> None:
    application = serving(version)
    ask(application, {"rows": [ROW]})
    application.use(Version(packaged(tag="people:two", shift=3.0)))
    told = ask(application, {"rows": [ROW]}).json()
    assert told["model"] == "people:two"
    (found,) = told["explanations"]
    # Of this version the age alone has a say.
    rise = found["answer"] - found["base"]
    assert found["contributions"] == pytest.approx({"age": rise, "height": 0, "town": 0}, abs=1e-9)
    assert abs(rise) > 0.01


def test_the_openapi_page_describes_explanations(version, regression) -> None:
    document = get(serving(version), "/openapi.json").json()
    operation = document["paths"]["/explain"]["post"]
    assert operation["parameters"][0]["schema"] == {"enum": ["old", "young"]}
    assert set(operation["responses"]) == {"200", "400", "405", "408", "413", "415", "422", "501", "503"}
    schema = document["components"]["schemas"]["Explanation"]
    assert schema["properties"]["contributions"]["required"] == list(COLUMNS)
    assert set(explained(version, ROW)[0]) == set(schema["required"])
    of_regression = get(serving(regression), "/openapi.json").json()
    assert "parameters" not in of_regression["paths"]["/explain"]["post"]


def test_shap_is_told_not_to_compile() -> None:
    """Its functions stay Python's: compiling them would hold the first client up for seconds."""
    import numba

    from bloomery.models.explainability.shapley import load_shap

    shap = load_shap()
    assert not isinstance(shap.explainers._exact._compute_grey_code_row_values, numba.core.dispatcher.Dispatcher)
    assert numba.config.DISABLE_JIT in (0, False)
