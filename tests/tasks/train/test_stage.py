"""The train stage: its MLflow run, its initial weights, and its resumption after a kill."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from bloomery.data_contracts.errors import DataMissing
from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.lineage import describe_lineage
from bloomery.data_contracts.records.records import Dataset, TrainedNetwork
from bloomery.data_contracts.records.scores import Score
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import NumberInput
from bloomery.models.networks.config import Mlp
from bloomery.models.training.config import Checkpoints, Explain, Privacy, Training
from bloomery.models.training.data import batches
from bloomery.models.training.transfer_config import StartFrom
from bloomery.tasks.compress.stage import compress
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration import events
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.initial_weights import locate_initial_weights
from bloomery.tasks.train.stage import train

pytestmark = pytest.mark.slow

MLP = Mlp(kind="mlp", hidden=(16,), dropout=0.1)
QUICK = Training(epochs=3, batch_size=32, learning_rate=1e-2, slices=("place",), explain=Explain(rows=2, sample=4))
LONG = Training(epochs=40, batch_size=8, ema=0.99, explain=None, checkpoints=Checkpoints(every_steps=100))
CHILD = """
import sys
from pathlib import Path
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.networks.config import Mlp
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
apply_engine_environment()
require_state_folder()
from bloomery.tasks.train.stage import train
dataset, model, training = (Path(path).read_text() for path in sys.argv[1:])
train(Dataset.model_validate_json(dataset), Mlp.model_validate_json(model), Training.model_validate_json(training))
"""


@pytest.fixture
def dataset_of(checked_rows_of, home: Path) -> Callable[..., Dataset]:
    """Makes rows of four numbers and a place; the label is a class, or a number around 500."""

    def make(*, is_regression: bool = False) -> Dataset:
        values = np.random.default_rng(0).normal(size=(600, 4))
        signal = values[:, 0] - values[:, 1]
        label = pa.array(500 + 100 * signal) if is_regression else pa.array(np.where(signal > 0, "up", "down"))
        columns = {f"v{column}": pa.array(values[:, column]) for column in range(4)}
        place = pa.array(np.where(np.arange(600) % 3 > 0, "here", "there"))
        checked = checked_rows_of(pa.table({"id": pa.array(range(600)), **columns, "place": place, "label": label}))
        (home / "report.html").write_text("a report")
        features = Features(
            key="id",
            label="label",
            task="regression" if is_regression else "classification",
            inputs=(NumberInput(kind="number", columns=tuple(columns)),),
        )
        return prepare(checked.model_copy(update={"report_uri": "report.html"}), features, Engine(kind="local"))

    return make


def artifacts_of(trained: TrainedNetwork, path: str | None = None) -> set[str]:
    return {artifact.path for artifact in mlflow_runs.client().list_artifacts(trained.run_id, path)}


def table_of(trained: TrainedNetwork, name: str, folder: Path) -> list[dict[str, object]]:
    document = json.loads(Path(mlflow_runs.client().download_artifacts(trained.run_id, name, str(folder))).read_text())
    return [dict(zip(document["columns"], row, strict=True)) for row in document["data"]]


def test_the_run_of_a_classification_logs_everything(dataset_of, tmp_path: Path):
    run_events: list[events.Event] = []
    unsubscribe = events.subscribe(run_events.append)
    trained = train(dataset_of(), MLP, QUICK)
    unsubscribe()
    run = mlflow_runs.client().get_run(trained.run_id)
    metrics, params = run.data.metrics, run.data.params
    assert trained.val_score == pytest.approx(metrics["best_val_accuracy"])
    assert trained.val_score > 0.8
    assert {"val_auc", "val_calibration_error", "val_log_loss", "flops_per_row", "num_parameters"} <= set(metrics)
    assert metrics["rows_per_second"] > 0
    assert metrics["best_val_loss"] == pytest.approx(metrics["val_log_loss"], rel=1e-4)
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert 100 < metrics["process_memory_megabytes"] < metrics["system/system_memory_usage_megabytes"]
    assert (params["model.kind"], params["training.augment.flip"], params["training.epochs"]) == ("mlp", "False", "3")
    history = mlflow_runs.client().get_metric_history(trained.run_id, "val_accuracy")
    assert [point.step for point in history] == [1, 2, 3]
    plot_names = {"curves.png", "val_confusion.png", "val_calibration.png"}
    assert {*plot_names, "val_per_class.json", "val_per_slice.json", "val_worst.json"} <= artifacts_of(trained)
    slices = table_of(trained, "val_per_slice.json", tmp_path)
    assert {row["value"] for row in slices} == {"here", "there"}
    assert sum(row["rows"] for row in slices) == trained.dataset.val.num_rows
    worst = table_of(trained, "val_worst.json", tmp_path)
    assert all(row["truth"] != row["prediction"] for row in worst)
    assert len(worst) == round((1 - trained.val_score) * trained.dataset.val.num_rows)
    notes = [event.note for event in run_events if isinstance(event, events.Progress)]
    assert any("loss" in note and "rate" in note and "left" in note for note in notes)
    assert [baseline.name for baseline in trained.baselines] == [
        "majority class",
        "logistic regression",
        "boosted trees",
    ]
    constant, linear, _ = trained.baselines
    assert linear.num_rows == trained.dataset.train.num_rows
    assert constant.score.value < 0.7 < 0.95 < linear.score.value == linear.metrics["accuracy"]
    assert metrics["baseline_logistic_regression_macro_f1"] == linear.metrics["macro_f1"]
    probabilities = np.load(settings().path(linear.predictions_uri))
    assert probabilities.shape == (trained.dataset.test.num_rows, 2)


def test_a_regression_is_logged_in_the_units_of_its_label(dataset_of, tmp_path: Path):
    trained = train(dataset_of(is_regression=True), MLP, QUICK)
    metrics = mlflow_runs.client().get_run(trained.run_id).data.metrics
    assert trained.val_score == pytest.approx(metrics["best_val_rmse"], rel=1e-4)
    assert 1 < metrics["val_mae"] < trained.val_score < 141  # the standard deviation of the label
    assert metrics["val_r2"] > 0.3
    assert {"curves.png", "val_predictions.png", "val_worst.json", "val_per_slice.json"} <= artifacts_of(trained)
    errors = [abs(row["truth"] - row["prediction"]) for row in table_of(trained, "val_worst.json", tmp_path)]
    assert errors == sorted(errors, reverse=True)
    assert [baseline.name for baseline in trained.baselines] == ["mean", "ridge regression", "boosted trees"]
    assert trained.baselines[1].score.value < 1 < 100 < trained.baselines[0].score.value  # the label is linear


def test_a_large_training_split_is_read_from_disk(dataset_of, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(batches, "_MAX_BYTES", 1000)
    trained = train(dataset_of(), MLP, QUICK)
    assert trained.val_score > 0.8
    assert "val_per_class.json" in artifacts_of(trained)


def test_the_score_of_the_recipe_selects_and_identifies_the_network(dataset_of):
    dataset, score = dataset_of(), Score(name="log_loss")
    training = QUICK.model_copy(update={"score": score, "best_by": "score", "explain": None, "baselines": False})
    trained = train(dataset, MLP, training)
    history = mlflow_runs.client().get_metric_history(trained.run_id, "val_log_loss")
    assert trained.val_score == pytest.approx(min(point.value for point in history if point.step), rel=1e-6)
    assert (trained.score, trained.baselines) == (score, ())
    default = trained.model_copy(update={"stated_score": None})
    assert default.score == Score(name="accuracy")
    assert default.identity() != trained.identity()


def test_privacy_and_initial_weights_of_a_training_are_recorded_downstream(dataset_of, home: Path):
    dataset, model = dataset_of(), MLP.model_copy(update={"norm": "none"})
    first = train(dataset, model, QUICK.model_copy(update={"explain": None, "slices": ()}))
    folder = settings().path(first.uri).parent
    start_from = StartFrom(network=str(folder), mapping={"^layers": "layers"})
    initial_weights = locate_initial_weights(start_from)
    privacy = Privacy(epsilon=3, delta=1e-3)
    training = QUICK.model_copy(update={"explain": None, "slices": (), "start_from": start_from, "privacy": privacy})
    trained = train(dataset, model, training, initial_weights)
    assert trained.initial_weights == initial_weights
    assert 2.8 < trained.privacy.epsilon <= 3
    (skipped,) = trained.baselines
    assert "without noise" in skipped.reason
    run = mlflow_runs.client().get_run(trained.run_id).data
    assert (run.tags["start"], run.tags["start.sha256"]) == (str(folder), first.digest)
    assert run.metrics["privacy_epsilon"] == trained.privacy.epsilon
    lines = describe_lineage(trained)
    assert f"private within epsilon {trained.privacy.epsilon:.3g} and delta 0.001" in lines[0][2]
    assert lines[1] == ("start", initial_weights.digest, f"weights of {folder}: 4 weights loaded, 0 new")
    assert trained.transfer.num_loaded == 4
    # Compression does not read the training rows again, which would cost more of epsilon.
    settings().path(dataset.train.uri).unlink()
    candidates = compress(trained, Compression(latency_rounds=3))
    assert [candidate.name for candidate in candidates.candidates] == ["fp32", "int8"]


def test_missing_or_damaged_initial_weights_are_reported_before_the_run(home: Path, tmp_path: Path):
    start_from = StartFrom(network="begin")
    assert start_from.absolute(tmp_path) == start_from  # a name in the registry
    with pytest.raises(DataMissing, match="no begin"):
        locate_initial_weights(start_from)
    (tmp_path / "begin").mkdir()
    with pytest.raises(DataMissing, match="there are no weights of") as missing:
        locate_initial_weights(StartFrom(network="./begin").absolute(tmp_path))
    assert missing.value.where == str(tmp_path / "begin" / "weights.safetensors")
    (tmp_path / "begin" / "weights.safetensors").write_text("no tensors")
    with pytest.raises(DataMissing, match="cannot be read"):
        locate_initial_weights(start_from.absolute(tmp_path))
    mlflow_runs.client().create_registered_model("kept")
    with pytest.raises(DataMissing, match="no kept:7") as unknown:
        locate_initial_weights(StartFrom(network="kept:7"))
    assert unknown.value.required == "a version of kept; it has none"


def test_a_stage_killed_during_training_ends_with_the_same_weights(dataset_of, home: Path, tmp_path: Path):
    dataset = dataset_of()
    files = [tmp_path / name for name in ("dataset", "model", "training")]
    for path, document in zip(files, (dataset, MLP, LONG), strict=True):
        path.write_text(document.model_dump_json(by_alias=True))
    child = subprocess.Popen([sys.executable, "-c", CHILD, *map(str, files)], cwd=Path(__file__).parents[3])
    checkpoints, deadline = home / "checkpoints" / train.key(dataset, MLP, LONG), time.monotonic() + 120
    while not list(checkpoints.glob("step-*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    (checkpoint,) = checkpoints.glob("step-*")

    resumed = train(dataset, MLP, LONG)
    steps = [point.step for point in mlflow_runs.client().get_metric_history(resumed.run_id, "step_loss")]
    assert min(steps) > int(checkpoint.name.removeprefix("step-"))
    assert not checkpoints.exists()

    shutil.rmtree(home / "stages" / "train")
    undisturbed = train(dataset, MLP, LONG)
    assert undisturbed.run_id != resumed.run_id
    assert (undisturbed.digest, undisturbed.val_score) == (resumed.digest, resumed.val_score)
