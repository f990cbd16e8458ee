"""A hand-made version of a model with known predictions and every kind of column in its contract."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.deployments.endpoint.telemetry.metrics import Metrics
from bloomery.models.features.config import Features
from bloomery.models.features.encoder import STATISTICS, encode, fit, partial_statistics
from tests.deployments.artifacts import write_artifacts

COLUMNS: tuple[dict[str, Any], ...] = (
    {"name": "id", "logicalType": "integer", "required": True, "primaryKey": True, "primaryKeyPosition": 1},
    {
        "name": "age",
        "logicalType": "integer",
        "required": True,
        "logicalTypeOptions": {"minimum": 0, "maximum": 120},
    },
    {"name": "height", "logicalType": "number", "logicalTypeOptions": {"minimum": 0.5, "exclusiveMaximum": 3.0}},
    {
        "name": "town",
        "logicalType": "string",
        "required": True,
        "logicalTypeOptions": {"pattern": "^[a-z]+$"},
    },
    {"name": "label", "logicalType": "string", "required": True},
)
ROWS = [
    {"age": 30, "height": 1.7, "town": "york"},
    {"age": 60, "height": 1.6, "town": "bath"},
    {"age": 5, "height": None, "town": "york"},
]


@pytest.fixture(scope="session", autouse=True)
def unsigned_is_allowed() -> Iterator[None]:
    """Hand-made versions are not signed; tests of signatures override this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLOOMERY_SERVE_UNSIGNED", "allowed")
        yield


@pytest.fixture(scope="session")
def metrics() -> Metrics:
    """Shared, because Prometheus accepts a metric's name once per process."""
    return Metrics()


@pytest.fixture(scope="session")
def packaged(tmp_path_factory: pytest.TempPathFactory, contract_of: Callable[..., Contract]) -> Callable[..., Path]:
    """Makes the `artifacts` folder of a version that adds `shift` to the second of two logits.

    `refuse_unknown` rejects towns that training did not have. With `weighs_all` every column has a weight, not only the
    age. A regression's label is the value that is otherwise the first logit. `names` renames columns.
    """

    def make(
        tag: str = "people:one",
        shift: float = 0.0,
        refuse_unknown: bool = False,
        weighs_all: bool = False,
        is_regression: bool = False,
        names: Mapping[str, str] | None = None,
    ) -> Path:
        def named(name: str) -> str:
            return (names or {}).get(name, name)

        folder = tmp_path_factory.mktemp("artifacts")
        label = {"name": "label", "logicalType": "number" if is_regression else "string", "required": True}
        contract = contract_of(*({**column, "name": named(column["name"])} for column in (*COLUMNS[:-1], label)))
        towns: dict[str, Any] = {"kind": "category", "columns": [named("town")]}
        if refuse_unknown:
            towns["unknown"] = "refuse"
        features = Features.model_validate(
            {
                "key": named("id"),
                "label": named("label"),
                "task": "regression" if is_regression else "classification",
                "inputs": [
                    {"kind": "number", "columns": [named("age"), named("height")], "missing": "mean"},
                    towns,
                ],
            }
        )
        training_rows = pa.table(
            {
                "id": range(4),
                "age": [20, 40, 60, 80],
                "height": [1.5, 1.6, 1.7, 1.8],
                "town": ["york", "bath", "york", "bath"],
                "label": [1.0, 2.0, 4.0, 5.0] if is_regression else ["young", "young", "old", "old"],
            }
        )
        training_rows = training_rows.rename_columns([named(name) for name in training_rows.column_names])
        encoder = fit(
            features, next(iter(partial_statistics(features, training_rows.to_batches())))[STATISTICS].to_pylist()
        )
        width = encode(encoder, training_rows).shape[1]
        weights = np.zeros((width, 2), np.float32)
        weights[0] = (1, -1)  # grows with the age
        if weighs_all:
            weights[:] = np.random.default_rng(1).normal(size=weights.shape)
        biases = np.array([0, shift], np.float32)
        if is_regression:
            weights, biases = weights[:, :1], biases[:1]
        _write_network(folder / "model.onnx", weights, biases)
        columns = [named(name) for name in ("age", "height", "town")]
        background = json.dumps([{named(name): value for name, value in row.items()} for row in ROWS])
        write_artifacts(folder, tag, columns, contract, encoder, {"background.json": background})
        return folder

    return make


@pytest.fixture(scope="session")
def save_model() -> Callable[[Path, Path], Path]:
    """Saves a hand-made version, to which two example rows are added, as an MLflow model below a folder."""

    def save(artifacts: Path, folder: Path) -> Path:
        from mlflow.models import Model

        from bloomery.deployments.endpoint.inference.model_version import LoadedVersion
        from bloomery.tasks.bentos.bundled_code import copy_modules
        from bloomery.tasks.registry import logged_model

        version = LoadedVersion(artifacts)
        rows = [{"age": 30, "height": 1.7, "town": "york"}, {"age": 70, "height": 1.7, "town": "york"}]
        predictions = version.format_predictions(version.predict(version.row_check.parse_table(rows).to_batches()[0]))
        examples = [{"row": row, "prediction": prediction} for row, prediction in zip(rows, predictions, strict=True)]
        (artifacts / "examples.json").write_text(json.dumps(examples))
        manifest = json.loads((artifacts / "manifest.json").read_text())
        manifest["files"]["examples.json"] = digest_of_file(artifacts / "examples.json")
        (artifacts / "manifest.json").write_text(json.dumps(manifest))
        source = folder / "src"
        copy_modules(source)
        shutil.copytree(artifacts, source / "artifacts")
        (folder / "scratch").mkdir()
        options = logged_model.model_options(source, folder / "scratch")
        logged_model.RegistryFlavor.save_model(str(folder / "model"), mlflow_model=Model(), **options)
        return folder / "model"

    return save


def _write_network(path: Path, weights: np.ndarray, biases: np.ndarray) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gemm", ["x", "w", "b"], ["logits"])],
        "linear",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", len(weights)])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", weights.shape[1]])],
        [onnx.numpy_helper.from_array(value, name) for name, value in (("w", weights), ("b", biases))],
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
