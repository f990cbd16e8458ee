"""Distributed training with torchrun and Spark: its weights, its errors, and its restart after a kill."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from bloomery.data_contracts.errors import EngineMissing, RecipeInvalid, TrainingDiverged
from bloomery.data_contracts.recipe_sections.engine import Engine, SparkConfig
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.features.config import Features
from bloomery.models.features.input_config import NumberInput, TextInput
from bloomery.models.networks.config import Mlp, Transformer
from bloomery.models.training.config import Checkpoints, Training
from bloomery.tasks.infrastructure.device import configure_processor
from bloomery.tasks.prepare.stage import prepare
from bloomery.tasks.train import fit
from bloomery.tasks.train.distributed.launcher import _read_failure, fit_distributed, launch_command
from bloomery.tasks.train.distributed.worker import FAILURE, TrainingJob, to_failure, write_document
from bloomery.tasks.train.stage import train

MLP = Mlp(kind="mlp", hidden=(16,), norm="none", dropout=0.0)
TRAINING = Training(epochs=6, batch_size=32, seed=1, devices=2, checkpoints=Checkpoints(every_steps=5))
LOCAL_2 = SparkConfig(master="local[2]", settings={"spark.driver.memory": "600m"})


@pytest.fixture
def dataset(checked_rows_of) -> Dataset:
    random = np.random.default_rng(0)
    values = random.normal(size=(600, 4))
    columns = {f"v{column}": pa.array(values[:, column]) for column in range(4)}
    label = pa.array(np.where(values[:, 0] * values[:, 1] > 0, "same", "other"))
    table = pa.table({"id": pa.array(range(600)), **columns, "label": label})
    features = Features(key="id", label="label", inputs=(NumberInput(kind="number", columns=tuple(columns)),))
    return prepare(checked_rows_of(table), features, Engine(kind="local"))


@pytest.fixture
def texts(checked_rows_of) -> Dataset:
    """Texts of one to eight words, labelled by which of two words occurs more often."""
    random = np.random.default_rng(0)
    words = [random.choice(["left", "right", "and", "then"], size=random.integers(1, 9)) for _ in range(400)]
    label = ["left" if (row == "left").sum() > (row == "right").sum() else "other" for row in words]
    table = pa.table(
        {
            "id": pa.array(range(400)),
            "text": [" ".join(row) + f" {position}" for position, row in enumerate(words)],
            "label": label,
        }
    )
    text = TextInput(kind="text", column="text", length=10, tokenizer="words", vocabulary_size=6)
    return prepare(checked_rows_of(table), Features(key="id", label="label", inputs=(text,)), Engine(kind="local"))


def weights_of(result: fit.FitResult) -> dict[str, torch.Tensor]:
    return result.network.state_dict()


def is_worker(process: psutil.Process) -> bool:
    """Whether the process trains, rather than starting processes that do."""
    try:
        command = " ".join(process.cmdline()[1:])
        return command.startswith("-u -m bloomery.tasks.train.distributed.worker ") or (
            command.startswith("-u /") and command.endswith("/train.py")
        )
    except psutil.Error:  # the process has just ended
        return False


def list_workers() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if is_worker(process)]


def kill_worker(folder: Path, killed: list[int]) -> None:
    """Waits for a checkpoint, then kills a training process."""
    deadline = time.monotonic() + 180
    while not killed and time.monotonic() < deadline:
        if list(folder.glob("step-*")):
            for worker in list_workers()[-1:]:
                worker.send_signal(signal.SIGKILL)
                killed.append(worker.pid)
        time.sleep(0.01)


def assert_close(result: fit.FitResult, expected: fit.FitResult) -> None:
    """Asserts that both have the same weights up to the order of sums, and the same score after every epoch."""
    for name, weight in weights_of(expected).items():
        torch.testing.assert_close(weights_of(result)[name], weight, atol=1e-5, rtol=1e-5)
    assert [epoch.val_score for epoch in result.history] == [epoch.val_score for epoch in expected.history]


def fit_and_kill_worker(job: TrainingJob) -> fit.FitResult:
    killed: list[int] = []
    killer = threading.Thread(target=kill_worker, args=(fit.checkpoint_folder(job.key), killed))
    killer.start()
    result = fit_distributed(job)
    killer.join()
    assert killed
    assert not list_workers()
    return result


@pytest.mark.slow
def test_a_training_on_spark_agrees_with_one_process(dataset, home):
    configure_processor(TRAINING)
    single = fit.fit_network(fit.read_splits(dataset), fit.make_blueprint(dataset, MLP), TRAINING)
    spark_training = TRAINING.model_copy(update={"launcher": "spark"})
    job = TrainingJob(key="on-spark", dataset=dataset, model=MLP, training=spark_training, spark=LOCAL_2)
    assert_close(fit_distributed(job), single)
    assert not list((home / "jobs").iterdir())


@pytest.mark.slow
@pytest.mark.nightly  # each day Spark trains, and torchrun restarts what was killed in the pipeline below
@pytest.mark.parametrize("launcher", ["torchrun", "spark"])
def test_a_restarted_training_has_the_bits_of_an_undisturbed_one(launcher, dataset, home, tmp_path, monkeypatch):
    training = TRAINING.model_copy(update={"epochs": 25})
    configure_processor(training)
    temporary_folder = tmp_path / "temporary"
    temporary_folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary_folder))
    single = fit.fit_network(fit.read_splits(dataset), fit.make_blueprint(dataset, MLP), training)
    expected = fit_distributed(TrainingJob(key="undisturbed", dataset=dataset, model=MLP, training=training))
    assert_close(expected, single)
    assert not [*temporary_folder.iterdir(), *(home / "jobs").iterdir()]
    launcher_training = training.model_copy(update={"launcher": launcher})
    job = TrainingJob(key=f"killed-{launcher}", dataset=dataset, model=MLP, training=launcher_training, spark=LOCAL_2)
    result = fit_and_kill_worker(job)
    for name, weight in weights_of(expected).items():
        assert torch.equal(weights_of(result)[name], weight)
    assert result.history == expected.history


@pytest.mark.slow
def test_a_killed_process_of_a_pipeline_resumes_with_its_layers(texts, home, tmp_path, monkeypatch):
    temporary_folder = tmp_path / "temporary"
    temporary_folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary_folder))
    network = Transformer(kind="transformer", width=16, num_layers=2, num_heads=2, dropout=0.0)
    training = TRAINING.model_copy(update={"strategy": "pipeline", "epochs": 8})
    configure_processor(training)
    single = fit.fit_network(fit.read_splits(texts), fit.make_blueprint(texts, network), training)
    job = TrainingJob(key="pipeline", dataset=texts, model=network, training=training)
    result = fit_and_kill_worker(job)
    assert not [*temporary_folder.iterdir(), *(home / "jobs").iterdir()]
    for name, weight in weights_of(single).items():
        # Softmax does not depend on the bias of keys: its gradient is rounding error, which AdamW scales to full steps.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(weights_of(result)[name], weight, atol=1e-5, rtol=1e-5)
    assert [epoch.val_score for epoch in result.history] == [epoch.val_score for epoch in single.history]


@pytest.mark.slow
def test_an_error_in_a_process_is_raised_by_the_launcher(dataset, home):
    incomplete_dataset = dataset.model_copy(
        update={"train": dataset.train.model_copy(update={"uri": "nowhere.parquet"})}
    )
    with pytest.raises(EngineMissing, match="nowhere"):
        fit_distributed(TrainingJob(key="lost", dataset=incomplete_dataset, model=MLP, training=TRAINING))


def test_an_error_in_a_process_keeps_its_class_and_its_fields(tmp_path):
    error = TrainingDiverged("the loss is nan", required="a number", where="epoch 1", remedy="lower the learning rate")
    write_document(tmp_path / FAILURE, to_failure(error))
    raised = _read_failure(tmp_path, 1)
    assert type(raised) is TrainingDiverged
    assert (raised.found, raised.required, raised.where, raised.remedy) == (
        error.found,
        error.required,
        error.where,
        error.remedy,
    )


@pytest.mark.slow
@pytest.mark.nightly  # the two tests above cover its parts every day
def test_an_error_in_a_process_on_spark_is_raised_by_the_launcher(dataset, home):
    training = TRAINING.model_copy(update={"learning_rate": 1e30, "launcher": "spark"})
    with pytest.raises(TrainingDiverged, match="learning rate"):
        fit_distributed(TrainingJob(key="diverges", dataset=dataset, model=MLP, training=training, spark=LOCAL_2))


@pytest.mark.slow
def test_waiting_for_slots_of_spark_ends_with_an_error(dataset, home):
    check_once = {
        f"spark.scheduler.barrier.maxConcurrentTasksCheck.{name}": "1" for name in ("interval", "maxFailures")
    }
    spark = LOCAL_2.model_copy(update={"settings": {**LOCAL_2.settings, **check_once, "spark.task.cpus": "2"}})
    training = TRAINING.model_copy(update={"launcher": "spark"})
    with pytest.raises(EngineMissing, match="did not grant 2 slots"):
        fit_distributed(TrainingJob(key="busy", dataset=dataset, model=MLP, training=training, spark=spark))


@pytest.mark.parametrize("master", ["local", "local[1]", "local[1, 4]", "sc://far:15002"])
def test_a_spark_master_with_too_few_slots_is_refused(dataset, master):
    training = TRAINING.model_copy(update={"launcher": "spark"})
    spark = SparkConfig(master=master)
    with pytest.raises(RecipeInvalid, match=r"Spark's master|on sc://"):
        fit_distributed(TrainingJob(key="refused", dataset=dataset, model=MLP, training=training, spark=spark))


@pytest.mark.slow
def test_the_stage_trains_on_the_spark_of_its_engine(dataset, home):
    (home / dataset.valid_rows.report_uri).write_text("made for a test")
    training = TRAINING.model_copy(update={"launcher": "spark"})
    with pytest.raises(RecipeInvalid, match=r"local\[1\]"):
        train(dataset, MLP, training, None, Engine(spark=SparkConfig(master="local[1]")))


def test_the_command_for_several_machines_names_their_rendezvous(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLOOMERY_RENDEZVOUS", "head:29500")
    command = launch_command(Path("/shared/jobs/KEY/job.json"), TRAINING.model_copy(update={"nodes": 3}))
    assert {"--rdzv-endpoint=head:29500", "--rdzv-id=KEY", "--nnodes=3", "--nproc-per-node=2"} <= set(command)
    assert "--standalone" in launch_command(Path("job.json"), TRAINING)
