"""A client uses the names of the source, whatever they are, in JSON, in Arrow streams and in explanations."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from bloomery.data_contracts.requests.arrow_rows import ARROW_MEDIA_TYPE as ARROW
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from tests.deployments.endpoint.asgi.test_application import ROW, ask, stream_of


@pytest.mark.parametrize(
    "names",
    [
        {"age": "sepal.length", "height": "on thyroxine", "town": "Возраст 😀", "id": "rows", "label": "y"},
        {"age": "a", "height": "A", "town": "%", "id": "x", "label": "label"},
        {"age": "rows", "height": "label", "town": "model[]", "id": "probabilities", "label": "prediction"},
        {"age": 'the "age"', "height": " ", "town": "row", "id": "columns", "label": "1st"},
    ],
)
def test_a_client_uses_the_names_of_the_source(packaged: Any, metrics: Metrics, names: dict[str, str]) -> None:
    application = Application(Limits(), metrics)
    application.use_version(LoadedVersion(packaged(names=names, weighs_all=True)))
    row = {names[name]: value for name, value in ROW.items()}
    predicted = ask(application, {"rows": [row]}).json()["predictions"]
    from_stream = ask(application, stream_of(pa.Table.from_pylist([row])), content_type=ARROW)
    assert from_stream.json()["predictions"] == predicted
    (explanation,) = ask(application, {"rows": [row]}, "/explain").json()["explanations"]
    assert explanation["contributions"].keys() == row.keys()
    schema = ask(application, b"", "/openapi.json", "GET").json()["components"]["schemas"]["Row"]
    assert schema["properties"].keys() == row.keys()
    for name, value in ((names["age"], -1), (names["height"], "tall"), (names["town"], None)):
        problems = ask(application, {"rows": [{**row, name: value}]}).json()["problems"]
        assert [problem["column"] for problem in problems] == [name]
