"""Processes that train together, started by torchrun or Spark, and what happens when one of them is killed."""

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
    columns = {f"v{at}": pa.array(values[:, at]) for at in range(4)}
    label = pa.array(np.where(values[:, 0] * values[:, 1] > 0, "same", "other"))
    table = pa.table({"id": pa.array(range(600)), **columns, "label": label})
    features = Features(key="id", label="label", inputs=(NumberInput(kind="number", columns=tuple(columns)),))
    return prepare(checked_rows_of(table), features, Engine(kind="local"))


@pytest.fixture
def texts(checked_rows_of) -> Dataset:
    """Texts of one to eight words, by which of two words comes more often."""
    random = np.random.default_rng(0)
    words = [random.choice(["left", "right", "and", "then"], size=random.integers(1, 9)) for _ in range(400)]
    label = ["left" if (of_row == "left").sum() > (of_row == "right").sum() else "other" for of_row in words]
    table = pa.table(
        {"id": pa.array(range(400)), "text": [" ".join(row) + f" {at}" for at, row in enumerate(words)], "label": label}
    )
    text = TextInput(kind="text", column="text", length=10, tokenizer="words", vocabulary_size=6)
    return prepare(checked_rows_of(table), Features(key="id", label="label", inputs=(text,)), Engine(kind="local"))


def weights_of(fitted: fit.FitResult) -> dict[str, torch.Tensor]:
    return fitted.network.state_dict()


def is_worker(process: psutil.Process) -> bool:
    """Whether it trains, and is not one of those that start the ones that do."""
    try:
        command = " ".join(process.cmdline()[1:])
        return command.startswith("-u -m bloomery.tasks.train.distributed.worker ") or (
            command.startswith("-u /") and command.endswith("/train.py")
        )
    except psutil.Error:  # it has just ended
        return False


def kill_a_worker(folder: Path, killed: list[int]) -> None:
    """Wait for a checkpoint, then kill a process that trains."""
    deadline = time.monotonic() + 180
    while not killed and time.monotonic() < deadline:
        if list(folder.glob("step-*")):
            for worker in [one for one in psutil.Process().children(recursive=True) if is_worker(one)][-1:]:
                worker.send_signal(signal.SIGKILL)
                killed.append(worker.pid)
        time.sleep(0.01)


def assert_close(result: fit.FitResult, expected: fit.FitResult) -> None:
    """Asserts that both have the same weights up to the order of sums, and the same score after every epoch."""
    for name, weight in weights_of(expected).items():
        torch.testing.assert_close(weights_of(result)[name], weight, atol=1e-5, rtol=1e-5)
    assert [epoch.val_score for epoch in result.history] == [epoch.val_score for epoch in expected.history]


def fit_and_kill_a_worker(job: TrainingJob) -> fit.FitResult:
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker, args=(fit.checkpoint_folder(job.key), killed))
    killer.start()
    result = fit_distributed(job)
    killer.join()
    assert killed
    assert not [process for process in psutil.Process().children(recursive=True) if is_worker(process)]
    return result


@pytest.mark.slow
def test_a_training_killed_on_spark_is_restarted_and_agrees_with_one_process(dataset, home):
    training = TRAINING.model_copy(update={"epochs": 25})
    configure_processor(training)
    alone = fit.fit_network(fit.read_splits(dataset), fit.make_blueprint(dataset, MLP), training)
    on_spark = training.model_copy(update={"launcher": "spark"})
    job = TrainingJob(key="killed", dataset=dataset, model=MLP, training=on_spark, spark=LOCAL_2)
    assert_close(fit_and_kill_a_worker(job), alone)
    assert not list((home / "jobs").iterdir())


@pytest.mark.slow
@pytest.mark.nightly  # each day the test above compares a restarted training with one process
@pytest.mark.parametrize("launcher", ["torchrun", "spark"])
def test_a_restarted_training_has_the_bits_of_an_undisturbed_one(launcher, dataset, home, tmp_path, monkeypatch):
    training = TRAINING.model_copy(update={"epochs": 25})
    configure_processor(training)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    alone = fit.fit_network(fit.read_splits(dataset), fit.make_blueprint(dataset, MLP), training)
    undisturbed = fit_distributed(TrainingJob(key="undisturbed", dataset=dataset, model=MLP, training=training))
    assert_close(undisturbed, alone)
    assert not [*temporary.iterdir(), *(home / "jobs").iterdir()]
    launched = training.model_copy(update={"launcher": launcher})
    job = TrainingJob(key=f"killed-{launcher}", dataset=dataset, model=MLP, training=launched, spark=LOCAL_2)
    restarted = fit_and_kill_a_worker(job)
    for name, weight in weights_of(undisturbed).items():
        assert torch.equal(weights_of(restarted)[name], weight)
    assert restarted.history == undisturbed.history


@pytest.mark.slow
def test_a_killed_process_of_a_pipeline_is_started_again_with_its_part(texts, home, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    network = Transformer(kind="transformer", width=16, num_layers=2, num_heads=2, dropout=0.0)
    training = TRAINING.model_copy(update={"strategy": "pipeline", "epochs": 8})
    configure_processor(training)
    alone = fit.fit_network(fit.read_splits(texts), fit.make_blueprint(texts, network), training)
    job = TrainingJob(key="pipeline", dataset=texts, model=network, training=training)
    together = fit_and_kill_a_worker(job)
    assert not [*temporary.iterdir(), *(home / "jobs").iterdir()]
    for name, weight in weights_of(alone).items():
        # Softmax does not feel the bias of keys. Its gradient is mere rounding, of which AdamW makes whole steps.
        if not name.endswith("key.bias"):
            torch.testing.assert_close(weights_of(together)[name], weight, atol=1e-5, rtol=1e-5)
    assert [epoch.val_score for epoch in together.history] == [epoch.val_score for epoch in alone.history]


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told_here(dataset, home):
    lost = dataset.model_copy(update={"train": dataset.train.model_copy(update={"uri": "nowhere.parquet"})})
    with pytest.raises(EngineMissing, match="nowhere"):
        fit_distributed(TrainingJob(key="lost", dataset=lost, model=MLP, training=TRAINING))


def test_an_error_of_a_process_is_raised_as_what_it_was(tmp_path):
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
@pytest.mark.nightly  # the two above do so every day
def test_what_goes_wrong_in_a_process_that_spark_has_started_is_told_here(dataset, home):
    training = TRAINING.model_copy(update={"learning_rate": 1e30, "launcher": "spark"})
    with pytest.raises(TrainingDiverged, match="learning rate"):
        fit_distributed(TrainingJob(key="diverges", dataset=dataset, model=MLP, training=training, spark=LOCAL_2))


@pytest.mark.slow
def test_a_spark_that_gives_no_slots_is_not_waited_for_without_end(dataset, home):
    ask_once = {f"spark.scheduler.barrier.maxConcurrentTasksCheck.{name}": "1" for name in ("interval", "maxFailures")}
    busy = LOCAL_2.model_copy(update={"settings": {**LOCAL_2.settings, **ask_once, "spark.task.cpus": "2"}})
    training = TRAINING.model_copy(update={"launcher": "spark"})
    with pytest.raises(EngineMissing, match="did not grant 2 slots"):
        fit_distributed(TrainingJob(key="busy", dataset=dataset, model=MLP, training=training, spark=busy))


@pytest.mark.parametrize("master", ["local", "local[1]", "local[1, 4]", "sc://far:15002"])
def test_a_spark_that_never_could_start_the_processes_is_refused(dataset, master):
    training = TRAINING.model_copy(update={"launcher": "spark"})
    spark = SparkConfig(master=master)
    with pytest.raises(RecipeInvalid, match=r"Spark's master|on sc://"):
        fit_distributed(TrainingJob(key="refused", dataset=dataset, model=MLP, training=training, spark=spark))


@pytest.mark.slow
def test_the_stage_trains_on_the_spark_of_its_means(dataset, home):
    (home / dataset.valid_rows.report_uri).write_text("made for a test")
    training = TRAINING.model_copy(update={"launcher": "spark"})
    with pytest.raises(RecipeInvalid, match=r"local\[1\]"):
        train(dataset, MLP, training, None, Engine(spark=SparkConfig(master="local[1]")))


def test_several_machines_meet_where_they_are_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLOOMERY_RENDEZVOUS", "head:29500")
    told = launch_command(Path("/shared/jobs/KEY/job.json"), TRAINING.model_copy(update={"nodes": 3}))
    assert {"--rdzv-endpoint=head:29500", "--rdzv-id=KEY", "--nnodes=3", "--nproc-per-node=2"} <= set(told)
    assert "--standalone" in launch_command(Path("job.json"), TRAINING)
