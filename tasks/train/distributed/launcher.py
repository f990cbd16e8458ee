"""Several processes that train one network: started by torchrun or Spark, watched, and their network taken over."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bloomery.data_contracts import errors
from bloomery.data_contracts.errors import BloomeryError, EngineMissing
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.data_contracts.records.records import Dataset, InitialWeights
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure import spark_session, tethered_process
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.train import fit
from bloomery.tasks.train.distributed import spark_launcher
from bloomery.tasks.train.distributed.spark_launcher import MAX_RESTARTS
from bloomery.tasks.train.distributed.worker import (
    FAILURE,
    PROGRESS,
    RESULT,
    WEIGHTS,
    ProgressLine,
    TrainingJob,
    TrainingResult,
    WorkerFailure,
)

if TYPE_CHECKING:
    from bloomery.models.training.loop import EpochResult, StepProgress

_LOG = "torchrun.log"


def fit_distributed(
    key: str,
    dataset: Dataset,
    model: Model,
    training: Training,
    start: InitialWeights | None,
    *,
    means: SparkConfig | None = None,
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None,
    on_step: Callable[[StepProgress], None] = lambda step: None,
) -> fit.FitResult:
    """The network that `training.devices` processes on each of `training.nodes` machines have trained.

    A process that dies is started again together with the others, and they go on from the last checkpoint.

    Raises:
        RecipeInvalid: the network cannot be spread so, or the Spark of `means` has too few slots.
        EngineMissing: Spark does not start or gives no slots, or the processes failed; then the message has the end of
            their log.
        TrainingDiverged: as in one process.
    """
    from bloomery.models.training.distributed.parallelize import require_supported_strategy

    require_supported_strategy(training, model)
    folder = settings().home / "jobs" / key
    if training.launcher == "spark":
        spark_launcher.require_slots(training, means)
        spark_session.release_executors(means)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "job.json"
    job = TrainingJob(
        key=key, dataset=dataset, model=model, training=training, start=start, spark=means or SparkConfig()
    )
    path.write_text(job.model_dump_json(by_alias=True), encoding="utf-8")
    with (folder / _LOG).open("ab") as log:
        # Without the second, what torchrun lays into the system's temporary folder would stay there.
        surroundings = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TMPDIR": str(folder)}
        agent = tethered_process.start_tethered(launch_command(path, training), log, surroundings)
        try:
            lines = _lines(folder / PROGRESS, lambda: agent.poll() is None and not (folder / FAILURE).is_file())
            for line in lines:
                _tell(ProgressLine.model_validate_json(line), on_epoch, on_step)
        finally:
            tethered_process.stop_tethered(agent)
    if agent.returncode or (folder / FAILURE).is_file():
        raise _failure(folder, agent.returncode)
    fitted = _taken_over(folder, dataset, model)
    shutil.rmtree(folder)
    return fitted


def launch_command(job: Path, training: Training) -> list[str]:
    """What is run on each machine. Of several machines, each but the first is given torchrun's by its user."""
    if training.launcher == "spark":
        return [sys.executable, "-m", "bloomery.tasks.train.distributed.spark_launcher", str(job)]
    meeting = ["--standalone"]
    if training.nodes > 1:
        endpoint = os.environ.get("BLOOMERY_RENDEZVOUS", "localhost:29400")
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={job.parent.name}"]
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *meeting,
        f"--nnodes={training.nodes}",
        f"--nproc-per-node={training.devices}",
        f"--max-restarts={MAX_RESTARTS}",
        *("-m", "bloomery.tasks.train.distributed.worker", str(job)),
    ]


def _lines(path: Path, is_running: Callable[[], bool]) -> Iterator[str]:
    """The lines of a growing file, until nobody writes it any more."""
    position = 0
    while True:
        is_last = not is_running()
        if path.is_file():
            with path.open(encoding="utf-8") as stream:
                stream.seek(position)
                while (line := stream.readline()).endswith("\n"):
                    position = stream.tell()
                    yield line
        if is_last:
            return
        time.sleep(0.2)


def _tell(told: ProgressLine, on_epoch: Callable[[EpochResult], None], on_step: Callable[[StepProgress], None]) -> None:
    from bloomery.models.training.loop import EpochResult, StepProgress

    if told.epoch is not None:
        on_epoch(EpochResult(int(told.epoch[0]), *told.epoch[1:]))
    if told.step is not None:
        number, num_steps, epoch, loss, rate = told.step
        on_step(StepProgress(int(number), int(num_steps), int(epoch), loss, rate))


def _taken_over(folder: Path, dataset: Dataset, model: Model) -> fit.FitResult:
    from safetensors.torch import load_file

    from bloomery.models.networks.blueprint import build_network
    from bloomery.models.training.loop import EpochResult

    blueprint = fit.make_blueprint(dataset, model)
    network = build_network(blueprint)
    network.load_state_dict(load_file(folder / WEIGHTS))
    result = TrainingResult.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))
    history = [EpochResult(int(epoch[0]), *epoch[1:]) for epoch in result.history]
    return fit.FitResult(network.eval(), blueprint, history, None, None)


def _failure(folder: Path, code: int) -> BloomeryError:
    """The error that a process has told of, or the end of the log."""
    if (folder / FAILURE).is_file():
        told = WorkerFailure.model_validate_json((folder / FAILURE).read_text(encoding="utf-8"))
        kind: type[BloomeryError] = getattr(errors, told.kind)
        return kind(told.found, required=told.required, where=told.where, remedy=told.remedy)
    lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    return EngineMissing(
        f"the processes that train together ended with {code}" + "".join(f"\n  | {line[:300]}" for line in lines),
        required="processes that run to the end",
        where=str(folder / _LOG),
        remedy="read the log above; docs/distributed.md says what the machines must share",
    )
