"""A version in MLflow's registry, used by MLflow's own engines: evaluation, Spark, and the scoring server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
from bloomery.tasks.infrastructure.python_processes import module_command
from tests.processes import responds

pytestmark = pytest.mark.slow

ROWS = [{"age": age, "height": 1.7, "town": town} for age, town in ((30, "york"), (70, "york"), (5, "bath"))]


@pytest.fixture(scope="module")
def artifacts(packaged: Callable[..., Path]) -> Path:
    return packaged(weighs_all=True)


@pytest.fixture(scope="module")
def model_folder(
    artifacts: Path, save_model: Callable[[Path, Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return save_model(artifacts, tmp_path_factory.mktemp("registered"))


@pytest.fixture(scope="module")
def expected(artifacts: Path) -> list[dict[str, Any]]:
    """The endpoint's predictions for `ROWS`."""
    version = LoadedVersion(artifacts)
    return version.format_predictions(version.predict(version.row_check.parse_table(ROWS).to_batches()[0]))


def test_mlflow_evaluates_the_model(model_folder: Path, expected: list[dict[str, Any]], home: Path) -> None:
    import mlflow

    from bloomery.tasks.tracking.mlflow_runs import ensure_experiment

    experiment = ensure_experiment("evaluation")
    data = pd.DataFrame(ROWS * 4).assign(label=[prediction["label"] for prediction in expected] * 4)
    with mlflow.start_run(experiment_id=experiment):
        result = mlflow.models.evaluate(str(model_folder), data, targets="label", model_type="classifier")
    assert result.metrics["accuracy_score"] == 1


@pytest.mark.nightly
def test_mlflow_evaluates_a_regression_and_a_function(
    packaged: Callable[..., Path],
    save_model: Callable[[Path, Path], Path],
    tmp_path: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import mlflow.pyfunc

    monkeypatch.setenv("BLOOMERY_SERVE_UNSIGNED", "allowed")  # `home` removes it

    from bloomery.tasks.tracking.mlflow_runs import ensure_experiment

    folder = save_model(packaged(is_regression=True), tmp_path)
    model = mlflow.pyfunc.load_model(str(folder), suppress_warnings=True)
    data = pd.DataFrame(ROWS * 4).assign(label=model.predict(pd.DataFrame(ROWS * 4))["value"])
    for evaluated in (str(folder), lambda rows: model.predict(rows)["value"]):
        with mlflow.start_run(experiment_id=ensure_experiment("evaluation")):
            result = mlflow.models.evaluate(evaluated, data, targets="label", model_type="regressor")
        assert result.metrics["root_mean_squared_error"] == pytest.approx(0, abs=1e-6)


@pytest.mark.nightly
def test_spark_applies_the_model(
    model_folder: Path, expected: list[dict[str, Any]], home: Path, shared_spark: None
) -> None:
    import mlflow.pyfunc
    from pyspark.sql.functions import struct

    from bloomery.data_contracts.recipe_sections.engine import SparkConfig
    from bloomery.tasks.infrastructure.spark_session import get_session

    spark = get_session(SparkConfig())
    predict = mlflow.pyfunc.spark_udf(spark, str(model_folder))
    rows = spark.createDataFrame(pd.DataFrame(ROWS)).repartition(2)
    result = rows.withColumn("prediction", predict(struct("age", "height", "town"))).toPandas()
    predictions = {row["age"]: row["prediction"] for row in result.to_dict("records")}
    for row, prediction in zip(ROWS, expected, strict=True):
        assert predictions[row["age"]]["label"] == prediction["label"]
        assert dict(predictions[row["age"]]["probabilities"]) == pytest.approx(prediction["probabilities"])


@pytest.mark.nightly
def test_the_scoring_server_serves_the_model(
    model_folder: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    from bloomery.tasks.infrastructure.tethered_process import find_free_port, tethered_server

    port = find_free_port()
    url = f"http://127.0.0.1:{port}"
    command = module_command(
        *("mlflow", "models", "serve", "--model-uri", str(model_folder)),
        *("--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)),
    )
    options: dict[str, Any] = {
        "is_ready": lambda: responds(f"{url}/ping"),
        "log": tmp_path / "log",
        "environment": {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},  # it runs `uvicorn`
        "folder": tmp_path,
    }
    with tethered_server(command, **options) as wait_until_ready:
        wait_until_ready()
        for body in ({"inputs": ROWS}, {"dataframe_records": ROWS}):
            response = httpx.post(f"{url}/invocations", json=body, trust_env=False, timeout=30)
            assert response.json() == {"predictions": expected}
        invalid = httpx.post(
            f"{url}/invocations", json={"inputs": [{**ROWS[0], "age": 121}]}, trust_env=False, timeout=30
        )
        assert invalid.status_code == 400
        assert "row 0, column age: found 121" in invalid.json()["message"]


@pytest.mark.nightly
def test_the_model_needs_no_installed_bloomery(
    model_folder: Path, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    """Only the installed packages are on the path, not the checkout."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    assert sysconfig.get_path("purelib") in packages
    code = (
        "import json, sys\n"
        f"sys.path += {packages!r}\n"
        "import mlflow.pyfunc\n"
        f"model = mlflow.pyfunc.load_model({str(model_folder)!r}, suppress_warnings=True)\n"
        "import bloomery\n"
        f"assert bloomery.__file__.startswith({str(model_folder)!r}), bloomery.__file__\n"
        f"print(json.dumps(model.predict(json.loads({json.dumps(json.dumps(ROWS))})).to_dict('records')))\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("BLOOMERY_", "PYTHON"))}
    command = [sys.executable, "-S", "-P", "-c", code]
    completed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr
    assert json.loads(completed.stdout.splitlines()[-1]) == expected
