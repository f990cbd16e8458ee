"""A version in MLflow's registry: the same predictions and errors as the endpoint's, for raw rows."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from bloomery.data_contracts.requests.arrow_rows import ArrowRowParser
from bloomery.data_contracts.requests.json_rows import JsonRowParser
from bloomery.data_contracts.requests.problems import RowsRefused
from bloomery.deployments import registry_model
from bloomery.deployments.endpoint.asgi.application import Application
from bloomery.deployments.endpoint.http.limits import Limits
from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.tasks.registry import logged_model
from tests.deployments.media_versions import IMAGE, package_version

ROW = {"age": 30, "height": 1.7, "town": "york"}
ROWS = [ROW, {**ROW, "age": 70}, {"age": 5, "height": None, "town": "nowhere"}]
SaveModel = Callable[[Path, Path], Path]


@pytest.fixture(scope="module")
def artifacts(packaged: Callable[..., Path]) -> Path:
    return packaged(weighs_all=True)


@pytest.fixture(scope="module")
def model_folder(artifacts: Path, save_model: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(artifacts, tmp_path_factory.mktemp("registered"))


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Any:
    import mlflow.pyfunc
    import mlflow.pyfunc.scoring_server  # as in the process of `mlflow models serve`

    return mlflow.pyfunc.load_model(str(model_folder), suppress_warnings=True)


@pytest.fixture(scope="module")
def ask(artifacts: Path, metrics: Metrics) -> Callable[[Any], Any]:
    """The endpoint's answer to a request with these rows."""
    application = Application(Limits(body_bytes=100_000, rows=1000, waiting=64), metrics)
    application.use_version(LoadedVersion(artifacts))

    async def call(content: bytes) -> httpx.Response:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://endpoint") as client:
            headers = {"content-type": "application/json"}
            return await client.post("/predict", content=content, headers=headers)

    return lambda rows: asyncio.run(call(json.dumps({"rows": rows}).encode())).json()


def test_wide_rows_are_encoded_in_smaller_batches(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    version = LoadedVersion(artifacts)
    expected = registry_model.RegistryModel(version).predict(ROWS)
    monkeypatch.setattr(registry_model, "_BATCH_VALUES", 2 * version.encoder.layout.num_values)
    model, sizes = registry_model.RegistryModel(version), []
    predict = version.predict
    monkeypatch.setattr(version, "predict", lambda rows: sizes.append(rows.num_rows) or predict(rows))
    pd.testing.assert_frame_equal(model.predict(ROWS), expected)
    assert sizes == [2, 1]


def test_each_row_is_predicted_as_by_the_endpoint(model: Any, ask: Callable[[Any], Any]) -> None:
    random = np.random.default_rng(0)
    towns = ["york", "bath", "nowhere"]
    rows = [
        {
            "age": int(random.integers(0, 121)),
            "height": None if number % 7 == 0 else float(random.uniform(0.5, 2.9)),
            "town": towns[number % 3],
        }
        for number in range(50)
    ]
    expected = ask(rows)["predictions"]
    frame = pd.DataFrame(rows, index=[f"r{number}" for number in range(50)])
    predictions = model.predict(frame)
    assert list(predictions.index) == list(frame.index)
    assert predictions.to_dict("records") == expected
    table = pa.Table.from_pylist(rows)
    for data in (table, rows, {"rows": rows}):
        assert model.predict(data).to_dict("records") == expected


@pytest.mark.parametrize(
    "change",
    [
        {"age": 121},
        {"age": -1},
        {"age": 30.5},
        {"age": "30"},
        {"age": None},
        {"age": True},
        {"height": 3.0},
        {"height": "tall"},
        {"town": "York"},
        {"town": None},
        {"town": 5},
        {"colour": "red"},
        {"age": [1, 2]},
    ],
    ids=str,
)
def test_an_invalid_row_is_refused_as_by_the_endpoint(model: Any, ask: Callable[[Any], Any], change: Any) -> None:
    rows = [ROW, {**ROW, **change}]
    answer = ask(rows)
    for data in (rows, pd.DataFrame(rows).astype(object)):
        expected = answer
        if "colour" in change and isinstance(data, pd.DataFrame):
            expected = ask([{**ROW, "colour": None}, rows[1]])  # a frame has the column in every row
        with pytest.raises(Exception) as refusal:  # noqa: PT011 - MLflow's, which is imported late
            model.predict(data)
        assert refusal.value.message == expected["error"]
        assert refusal.value.json_kwargs["problems"] == expected["problems"]


def test_a_missing_column_is_refused_as_by_the_endpoint(model: Any, ask: Callable[[Any], Any]) -> None:
    rows = [{"age": 30}, {"age": 40}]
    with pytest.raises(Exception, match="row 0, column town: found no value, but the column is required") as refusal:
        model.predict(pd.DataFrame(rows))
    assert refusal.value.message == ask(rows)["error"]


def test_encoded_and_unnamed_values_are_refused(model: Any) -> None:
    for data in (np.zeros((3, 4), np.float32), pd.Series([1.0]), "york", 5):
        with pytest.raises(Exception, match="the model requires a DataFrame with the columns age, height, town"):
            model.predict(data)
    with pytest.raises(Exception, match=r"the contract has no such column|column is required"):
        model.predict(pd.DataFrame(np.zeros((3, 4))))
    repeated = pd.DataFrame([[30, 40, 1.7, "york"]], columns=["age", "age", "height", "town"])
    with pytest.raises(Exception, match="column age: found two columns"):
        model.predict(repeated)
    with pytest.raises(Exception, match="at least 1 item"):
        model.predict(pd.DataFrame(ROWS).iloc[:0])


def test_frames_may_have_the_types_that_pandas_gives_them(model: Any, ask: Callable[[Any], Any]) -> None:
    expected = ask([{"age": 30, "height": 2, "town": "york"}, {"age": 70, "town": "bath"}])["predictions"]
    columns: dict[str, list[Any]] = {"age": [30, 70], "height": [2, None], "town": ["york", "bath"]}
    frame = pd.DataFrame(columns)
    for converted in (
        frame.astype({"age": "float64"}),  # whole numbers, as after `dropna`
        frame.astype({"age": "Int64", "height": "Float64", "town": "string"}),
        frame.astype({"age": "uint8", "height": "float32", "town": "category"}),
        frame.assign(height=[Decimal(2), None]),
        frame.assign(height=pd.array([2, None], dtype="Int64")),  # whole numbers in a column of numbers
        frame.assign(label="old", id=[1, 2]),  # other columns of the contract
        frame[["town", "height", "age"]],
        frame.set_index("age"),  # the index is a column of the contract
        frame.set_index(["town", "age"]),
        frame.assign(at=[1, 2]).set_index(["at", "age"]),
        columns,
    ):
        assert model.predict(converted).to_dict("records") == expected
    assert model.predict({"age": 70, "town": "bath"}).to_dict("records") == expected[1:]  # one row
    with pytest.raises(Exception, match="found 2 values, but each column must have as many values as the others"):
        model.predict({"age": [30, 70], "town": ["york"]})
    without_height = pd.DataFrame([{"age": 70, "town": "bath"}])
    assert model.predict(without_height).to_dict("records") == expected[1:]


def test_the_signature_and_the_example_are_those_of_the_contract(model: Any, model_folder: Path) -> None:
    from mlflow.types.schema import DataType, Map

    signature = model.metadata.signature
    columns = {column.name: (column.type, column.required) for column in signature.inputs.inputs}
    assert columns == {
        "age": (DataType.long, True),
        "height": (DataType.double, False),
        "town": (DataType.string, True),
    }
    outputs = {column.name: column.type for column in signature.outputs.inputs}
    assert outputs == {"label": DataType.string, "probabilities": Map(DataType.double)}
    assert model.input_example.to_dict("records") == ROWS[:2]
    assert list(model.predict(model.input_example)["label"]) == list(model.predict(ROWS[:2])["label"])
    files = [path for path in model_folder.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".joblib")]
    assert not [path for path in files if path.read_bytes()[:2] in (b"\x80\x04", b"\x80\x05")]  # no pickle
    assert registry_model.LOADER == logged_model.LOADER_NAME


def test_the_network_can_still_be_loaded_as_onnx(model_folder: Path, artifacts: Path) -> None:
    import mlflow.onnx
    import onnx

    assert mlflow.onnx.load_model(str(model_folder)) == onnx.load(artifacts / "model.onnx")


def test_frames_may_have_the_names_of_the_source(model: Any) -> None:
    names = registry_model.RegistryModel(model._model_impl.version)
    names._physical_names = {"Town of birth": "town"}
    frame = pd.DataFrame(ROWS)
    renamed = frame.rename(columns={"town": "Town of birth"})
    for data in (renamed, pa.Table.from_pandas(renamed)):
        assert names.predict(data).equals(model.predict(frame))
    with pytest.raises(Exception, match=r"column Town of birth: found .*, but the contract has no such column"):
        names.predict(frame.assign(**{"Town of birth": "york"}))


def test_a_regression_returns_values(packaged: Callable[..., Path], save_model: SaveModel, tmp_path: Path) -> None:
    import mlflow.pyfunc

    artifacts = packaged(is_regression=True)
    regression = mlflow.pyfunc.load_model(str(save_model(artifacts, tmp_path)), suppress_warnings=True)
    version = LoadedVersion(artifacts)
    expected = version.predict(version.row_check.parse_table([ROW]).to_batches()[0])
    assert regression.predict(pd.DataFrame([ROW])).to_dict("list") == {"value": expected.tolist()}
    assert [column.name for column in regression.metadata.signature.outputs.inputs] == ["value"]


def test_a_category_that_the_encoder_refuses_is_refused(
    packaged: Callable[..., Path], save_model: SaveModel, tmp_path: Path
) -> None:
    import mlflow.pyfunc

    strict = mlflow.pyfunc.load_model(str(save_model(packaged(refuse_unknown=True), tmp_path)), suppress_warnings=True)
    with pytest.raises(Exception, match="nowhere"):
        strict.predict(pd.DataFrame([{**ROW, "town": "nowhere"}]))


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", json.dumps({"inputs": ROWS})),
        ("application/json", json.dumps({"inputs": {name: [row.get(name) for row in ROWS] for name in ROW}})),
        ("application/json", json.dumps({"instances": ROWS})),
        ("application/json", json.dumps({"dataframe_records": ROWS})),
        (
            "application/json",
            json.dumps({"dataframe_split": {"columns": [*ROW], "data": [[*row.values()] for row in ROWS]}}),
        ),
        ("application/json", json.dumps({"rows": ROWS})),
        ("text/csv", "age,height,town\n30,1.7,york\n70,1.7,york\n5,,nowhere\n"),
    ],
    ids=["inputs", "inputs by column", "instances", "records", "split", "rows", "csv"],
)
def test_the_scoring_server_of_mlflow_accepts_every_form(
    model: Any, ask: Callable[[Any], Any], content_type: str, body: str
) -> None:
    from mlflow.pyfunc.scoring_server import invocations

    answer = invocations(body, content_type, model, model.metadata.get_input_schema())
    assert (answer.status, json.loads(answer.response)["predictions"]) == (200, ask(ROWS)["predictions"])


def test_the_scoring_server_answers_with_the_problems_of_the_rows(model: Any, ask: Callable[[Any], Any]) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.pyfunc.scoring_server import invocations

    rows = [ROW, {**ROW, "age": 121}]
    for body in ({"dataframe_records": rows}, {"inputs": rows}):
        with pytest.raises(MlflowException) as refusal:
            invocations(json.dumps(body), "application/json", model, model.metadata.get_input_schema())
        document = json.loads(refusal.value.serialize_as_json())
        assert document["problems"] == ask(rows)["problems"]
        assert refusal.value.get_http_status_code() == 400
    for invalid in ({"dataframe_split": {"columns": ["age"], "data": [[1, 2]]}}, {"dataframe_records": 5}):
        with pytest.raises(MlflowException):
            invocations(json.dumps(invalid), "application/json", model, model.metadata.get_input_schema())


def test_dates_may_be_times_at_midnight_or_text(contract_of: Callable[..., Any]) -> None:
    contract = contract_of(
        {"name": "day", "logicalType": "date"},
        {"name": "time", "logicalType": "timestamp"},
        {"name": "written", "logicalType": "date", "logicalTypeOptions": {"format": "dd/MM/yyyy"}},
    )
    names = ["day", "time", "written"]
    version: Any = SimpleNamespace(
        contract=contract,
        encoder=SimpleNamespace(columns=names, layout=SimpleNamespace(num_values=3)),
        arrow_check=ArrowRowParser(contract, names),
        row_check=JsonRowParser(contract, names),
        media=(),
    )
    moments = registry_model.RegistryModel(version)
    expected = {
        "day": [date(2024, 2, 29), None],
        "time": [datetime(2024, 2, 29, 12, tzinfo=UTC), None],
        "written": [date(2024, 2, 29), None],
    }
    times = pd.to_datetime(["2024-02-29 12:00", None])
    days = times.normalize()
    for frame in (
        pd.DataFrame({"day": days, "time": times, "written": ["29/02/2024", None]}),
        pd.DataFrame({"day": ["2024-02-29", None], "time": ["2024-02-29 12:00:00", None], "written": days}),
        pd.DataFrame(
            {"day": [date(2024, 2, 29), None], "time": times.tz_localize("UTC"), "written": ["29/02/2024", None]}
        ),
    ):
        assert moments._parse(frame).to_pydict() == expected
    with pytest.raises(RowsRefused, match=r"row 0, column day: found '2024-02-29T12:00:00.*must be a date"):
        moments._parse(pd.DataFrame({"day": times}))
    with pytest.raises(RowsRefused, match="row 1, column day: found 'soon', but must be a date"):
        moments._parse(pd.DataFrame({"day": ["2024-02-29", "soon"]}))


def test_an_evaluator_gets_boolean_labels_as_the_source_has_them(contract_of: Callable[..., Any]) -> None:
    version: Any = SimpleNamespace(
        contract=contract_of({"name": "paid", "logicalType": "boolean"}),
        encoder=SimpleNamespace(
            columns=[], layout=SimpleNamespace(num_values=1), features=SimpleNamespace(label="paid")
        ),
    )
    predictions = pd.DataFrame({"label": ["true", "false"], "probabilities": [{}, {}]})
    assert registry_model.RegistryModel(version)._label_or_value(predictions).tolist() == [True, False]
    version.contract = contract_of({"name": "paid", "logicalType": "string"})
    assert registry_model.RegistryModel(version)._label_or_value(predictions).tolist() == ["true", "false"]


def test_values_are_compared_as_in_json() -> None:
    values = registry_model._to_json(
        {"day": date(2024, 2, 29), "time": pd.Timestamp("2024-02-29T12:00:00"), "none": pd.NaT, "array": np.arange(2)}
    )
    assert values == {"day": "2024-02-29", "time": "2024-02-29T12:00:00+00:00", "none": None, "array": [0, 1]}


def test_images_may_be_files(tmp_path: Path, contract_of: Callable[..., Any]) -> None:
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 13
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG")
    version = LoadedVersion(package_version(tmp_path, IMAGE, contract_of))
    pictures = registry_model.RegistryModel(version)
    expected = pictures.predict([{"picture": pixels.transpose(2, 0, 1).reshape(-1).tolist()}] * 2).to_dict("records")
    files = [{"picture": sink.getvalue()}] * 2
    for data in (files, pd.DataFrame(files), pa.Table.from_pylist(files)):
        assert pictures.predict(data).to_dict("records") == expected
    with pytest.raises(Exception, match=r"row 1, column picture: found .* but must be an image as in training"):
        pictures.predict(pd.DataFrame([files[0], {"picture": b"no image"}]))
    with pytest.raises(Exception, match="the request: found 5, but input should be a valid list"):
        pictures.predict({"rows": 5})
