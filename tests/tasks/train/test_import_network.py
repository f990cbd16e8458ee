"""The train stage with an imported network, which it evaluates instead of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper, numpy_helper

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import OutputCorrupt, RecipeInvalid
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import NumberInput
from bloomery.models.networks.config import Imported
from bloomery.models.training.config import Explain, StartFrom, Training
from bloomery.tasks.compress.stage import compress
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.initial_weights import locate_initial_weights
from bloomery.tasks.train.stage import train

pytestmark = pytest.mark.slow

TRAINING = Training(slices=("place",), explain=Explain(rows=2, sample=4))


@pytest.fixture
def dataset(checked_rows_of, home: Path) -> Dataset:
    """Rows of two numbers; the label is 1,000 plus 100 times their difference."""
    values = np.random.default_rng(0).normal(size=(600, 2))
    columns = {name: pa.array(values[:, column]) for column, name in enumerate(("left", "right"))}
    place = pa.array(np.where(np.arange(600) % 3 > 0, "here", "there"))
    label = pa.array(1000 + 100 * (values[:, 0] - values[:, 1]))
    checked = checked_rows_of(pa.table({"id": pa.array(range(600)), **columns, "place": place, "label": label}))
    (home / "report.html").write_text("a report")
    inputs = (NumberInput(kind="number", columns=("left", "right")),)
    features = Features(key="id", label="label", task="regression", inputs=inputs)
    return prepare(checked.model_copy(update={"report_uri": "report.html"}), features, Engine(kind="local"))


@pytest.fixture
def model_of(tmp_path: Path) -> Callable[..., Imported]:
    """Makes a linear network with one output for a row of two numbers."""

    def make(*weights: float) -> Imported:
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["keras_tensor", "W"], ["Identity:0"])],
            "network",
            [helper.make_tensor_value_info("keras_tensor", TensorProto.FLOAT, ["unk__0", 2])],
            [helper.make_tensor_value_info("Identity:0", TensorProto.FLOAT, ["unk__1", 1])],
            [numpy_helper.from_array(np.array(weights, np.float32)[:, None], "W")],
        )
        path = tmp_path / "network.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8), path)
        return Imported(kind="imported", path=str(path), sha256=digest_of_file(path))

    return make


def test_a_regression_is_logged_in_the_units_of_its_label(dataset: Dataset, model_of) -> None:
    # Inputs and label are in standard units, so the label is their difference over the root of 2.
    trained = train(dataset, model_of(0.5**0.5, -(0.5**0.5)), TRAINING)
    metrics = mlflow_runs.client().get_run(trained.run_id).data.metrics
    assert trained.val_score == pytest.approx(metrics["best_val_rmse"], rel=1e-4)
    assert trained.val_score < 15  # the label has a standard deviation of 141
    assert (trained.epochs, trained.num_parameters, metrics["num_parameters"]) == (0, 2, 2)
    assert trained.import_error < 1e-6
    assert metrics["explanation_gap"] < 0.01
    artifacts = {artifact.path for artifact in mlflow_runs.client().list_artifacts(trained.run_id)}
    assert {"val_predictions.png", "val_worst.json", "val_per_slice.json", "network", "explanations"} <= artifacts


def test_an_imported_network_is_compressed_without_training(dataset: Dataset, model_of) -> None:
    trained = train(dataset, model_of(0.5**0.5, -(0.5**0.5)), TRAINING)
    fp32, int8 = compress(trained, Compression(latency_rounds=5)).candidates
    assert (fp32.name, int8.name, int8.is_row_by_row) == ("fp32", "int8", True)
    assert fp32.parity_error == trained.import_error
    assert fp32.sha256 == trained.digest
    assert fp32.score.value < 15


def test_the_key_depends_on_the_content_of_the_file_and_not_on_its_path(dataset: Dataset, model_of) -> None:
    model = model_of(1, 2)
    moved = model.model_copy(update={"path": "/elsewhere/same.onnx"})
    assert train.key(dataset, model, TRAINING, None) == train.key(dataset, moved, TRAINING, None)
    assert train.key(dataset, model, TRAINING, None) != train.key(dataset, model_of(1, 3), TRAINING, None)


def test_a_file_that_changes_after_the_recipe_was_read_is_refused(dataset: Dataset, model_of) -> None:
    model = model_of(1, 2)
    model_of(3, 4)
    with pytest.raises(OutputCorrupt, match="has changed since"):
        train(dataset, model, TRAINING)


def test_a_network_for_other_rows_is_refused_and_leaves_no_output(dataset: Dataset, model_of, home: Path) -> None:
    model = model_of(1, 2, 3)
    with pytest.raises(RecipeInvalid, match=r"shape \(free, 2\)|no answer|cannot run"):
        train(dataset, model, TRAINING)
    assert not list((home / "stages").glob("train/*/record.json"))


def test_training_cannot_start_from_an_imported_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "network.onnx"
    path.write_bytes(b"")
    monkeypatch.setattr(
        "bloomery.tasks.train.initial_weights._find_registered_weights", lambda reference: (reference, str(path), "")
    )
    with pytest.raises(RecipeInvalid, match="mine:3 is an imported network"):
        locate_initial_weights(StartFrom(network="mine:3"))
