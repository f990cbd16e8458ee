"""Trains a network in several processes: starts them with torchrun or Spark, watches them, loads their network."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bloomery.data_contracts import errors
from bloomery.data_contracts.errors import BloomeryError, EngineMissing
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure import spark_session, tethered_process
from bloomery.tasks.infrastructure.python_processes import module_command
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
    job: TrainingJob,
    *,
    on_epoch: Callable[[EpochResult], None] = lambda epoch: None,
    on_step: Callable[[StepProgress], None] = lambda step: None,
) -> fit.FitResult:
    """Trains with `training.devices` processes on each of `training.nodes` machines, and returns their network.

    When a process dies, all are restarted and resume from the last checkpoint.

    Raises:
        RecipeInvalid: the network does not support the strategy, or Spark has too few slots.
        EngineMissing: Spark does not start or grants no slots, or the processes failed; the message then has the end
            of their log.
        TrainingDiverged: as in a single process.
    """
    from bloomery.models.training.distributed.parallelize import require_supported_strategy

    training = job.training
    require_supported_strategy(training, job.model)
    folder = settings().home / "jobs" / job.key
    if training.launcher == "spark":
        spark_launcher.require_slots(training, job.spark)
        spark_session.release_executors(job.spark)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "job.json"
    path.write_text(job.model_dump_json(by_alias=True), encoding="utf-8")
    with (folder / _LOG).open("ab") as log:
        # TMPDIR: torchrun would leave files in the system's temporary folder.
        environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "TMPDIR": str(folder)}
        agent = tethered_process.start_tethered(launch_command(path, training), log, environment)
        try:
            lines = _follow_lines(folder / PROGRESS, lambda: agent.poll() is None and not (folder / FAILURE).is_file())
            for line in lines:
                _forward_progress(ProgressLine.model_validate_json(line), on_epoch, on_step)
        finally:
            tethered_process.stop_tethered(agent)
    if agent.returncode or (folder / FAILURE).is_file():
        raise _read_failure(folder, agent.returncode)
    result = _load_result(folder, job)
    shutil.rmtree(folder)
    return result


def launch_command(job: Path, training: Training) -> list[str]:
    """The command for this machine. On further machines the user runs the torchrun command."""
    if training.launcher == "spark":
        return module_command("bloomery.tasks.train.distributed.spark_launcher", str(job))
    rendezvous = ["--standalone"]
    if training.nodes > 1:
        endpoint = os.environ.get("BLOOMERY_RENDEZVOUS", "localhost:29400")
        rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={job.parent.name}"]
    return [
        *module_command("torch.distributed.run"),
        *rendezvous,
        f"--nnodes={training.nodes}",
        f"--nproc-per-node={training.devices}",
        f"--max-restarts={MAX_RESTARTS}",
        *("-m", "bloomery.tasks.train.distributed.worker", str(job)),
    ]


def _follow_lines(path: Path, is_running: Callable[[], bool]) -> Iterator[str]:
    """Yields the lines of a growing file, until its writers have ended."""
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


def _forward_progress(
    line: ProgressLine, on_epoch: Callable[[EpochResult], None], on_step: Callable[[StepProgress], None]
) -> None:
    from bloomery.models.training.loop import EpochResult, StepProgress

    if line.epoch is not None:
        on_epoch(EpochResult(int(line.epoch[0]), *line.epoch[1:]))
    if line.step is not None:
        number, num_steps, epoch, loss, rate = line.step
        on_step(StepProgress(int(number), int(num_steps), int(epoch), loss, rate))


def _load_result(folder: Path, job: TrainingJob) -> fit.FitResult:
    from safetensors.torch import load_file

    from bloomery.models.networks.blueprint import build_network
    from bloomery.models.training.loop import EpochResult

    blueprint = fit.make_blueprint(job.dataset, job.model)
    network = build_network(blueprint)
    network.load_state_dict(load_file(folder / WEIGHTS))
    result = TrainingResult.model_validate_json((folder / RESULT).read_text(encoding="utf-8"))
    history = [EpochResult(int(epoch[0]), *epoch[1:]) for epoch in result.history]
    return fit.FitResult(network.eval(), blueprint, history, None, None)


def _read_failure(folder: Path, exit_code: int) -> BloomeryError:
    """The error that a process has reported, or else the end of the log."""
    if (folder / FAILURE).is_file():
        failure = WorkerFailure.model_validate_json((folder / FAILURE).read_text(encoding="utf-8"))
        kind: type[BloomeryError] = getattr(errors, failure.kind)
        return kind(failure.found, required=failure.required, where=failure.where, remedy=failure.remedy)
    lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    return EngineMissing(
        f"the training processes ended with exit code {exit_code}" + "".join(f"\n  | {line[:300]}" for line in lines),
        required="processes that finish",
        where=str(folder / _LOG),
        remedy="read the log above; docs/distributed.md lists what the machines must share",
    )
