"""Runs training processes as tasks of a Spark barrier stage.

`python -m bloomery.tasks.train.distributed.spark_launcher JOB.json`

TorchDistributor starts torchrun in each task, and torchrun starts a worker. The launcher is a separate process, like
torchrun's agent. When a worker dies, the barrier stage fails and is started again.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bloomery.data_contracts.errors import BloomeryError, EngineMissing, RecipeInvalid
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure import spark_session
from bloomery.tasks.infrastructure.device import select_device
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder, settings
from bloomery.tasks.train.distributed.worker import FAILURE, TrainingJob, run_worker, to_failure, write_document

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

MAX_RESTARTS = 3
_SLOTS_TIMEOUT_S = 120
_SLOT_CHECK_INTERVAL_S = 5
_ROOMS = ("data_contracts", "models", "tasks")
_TOO_FEW_SLOTS_CODE = "SPARK-24819"  # at the start of Spark's message


def require_slots(training: Training, spark: SparkConfig | None) -> None:
    """Raises RecipeInvalid if Spark, configured by `spark`, can never run all training processes at a time."""
    master, num_processes = spark_session.spark_master(spark), training.devices * training.nodes
    slots = _count_local_slots(master)
    if master.startswith("sc://"):
        problem, required = f"`launcher: spark` on {master}", "a master that accepts a separate session"
        remedy = "use the cluster's own master, or `launcher: torchrun`"
    elif slots is not None and slots < num_processes:
        problem, required = f"{num_processes} processes on Spark's master {master}", f"{num_processes} tasks at a time"
        remedy = f"use the master local[{num_processes}], or change devices or nodes"
    else:
        return
    raise RecipeInvalid(
        problem, required=required, where="the recipe's spark.master or BLOOMERY_SPARK_MASTER", remedy=remedy
    )


def _count_local_slots(master: str) -> int | None:
    """The number of tasks that run at a time on this machine; None on a cluster, where it is unknown."""
    if master == "local":
        return 1
    match = re.fullmatch(r"local\[(\*|\d+)(,\s*\d+)?\]", master)
    if match is None:
        return None
    return os.cpu_count() or 1 if match[1] == "*" else int(match[1])


def run_on_spark(path: Path) -> None:
    """Runs the training job in the file on Spark, and returns when all processes have ended.

    Raises:
        EngineMissing: Spark does not start, has too few slots or grants no GPU; or processes died repeatedly.
    """
    job = TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))
    code = spark_session.write_code_archive(path.parent / "code.zip", _ROOMS)
    # Local Spark inherits this environment; a cluster's executors get theirs from the settings.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    session = spark_session.get_session(
        SparkConfig(master=job.spark.master, settings=_settings(code) | job.spark.settings)
    )
    use_gpu = _has_gpus(session, job.training)

    from pyspark.ml.torch.distributor import TorchDistributor

    num_processes = job.training.devices * job.training.nodes
    distributor = TorchDistributor(num_processes, local_mode=False, use_gpu=use_gpu)
    # Spark does not retry a barrier stage that returns a result.
    for restarts_left in range(MAX_RESTARTS, -1, -1):
        try:
            distributor.run(run_worker, path)  # a script file would hide torchrun's exit code
            return
        except Exception as failure:
            message = str(failure)  # read while the JVM still runs
            if _TOO_FEW_SLOTS_CODE in message:
                raise _too_few_slots_error(job, num_processes) from failure
            if not restarts_left or (path.parent / FAILURE).is_file():
                raise _died_error(message) from failure


def _too_few_slots_error(job: TrainingJob, num_processes: int) -> EngineMissing:
    return EngineMissing(
        f"Spark's master {spark_session.spark_master(job.spark)} did not grant {num_processes} slots at one time",
        required=f"{num_processes} free cores, or GPUs, of executors",
        where="the cluster",
        remedy="wait for other applications to end, add workers, or change devices or nodes",
    )


def _died_error(message: str) -> EngineMissing:
    return EngineMissing(
        f"training processes on Spark died, also after {MAX_RESTARTS} restarts: {message[:500]}",
        required="processes that finish",
        where="torchrun.log beside the job's file, and the executors' logs",
        remedy="read the log; docs/distributed.md lists what the machines must share",
    )


def _settings(code: Path) -> dict[str, str]:
    return {
        "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": f"{_SLOT_CHECK_INTERVAL_S}s",
        "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": str(_SLOTS_TIMEOUT_S // _SLOT_CHECK_INTERVAL_S),
        "spark.dynamicAllocation.enabled": "false",  # Spark refuses barrier stages with it
        "spark.executorEnv.BLOOMERY_HOME": str(settings().home),
        "spark.executorEnv.PYTHONPATH": str(code),
    }


def _has_gpus(session: SparkSession, training: Training) -> bool:
    """Whether Spark grants GPUs to each task; without a grant a worker sees none, even if its machine has some."""
    amount = float(session.conf.get("spark.task.resource.gpu.amount", "0") or 0)
    if training.device == "cpu" or (amount < 1 and select_device(training.device) == "cpu"):
        return False
    if amount >= 1:
        return True
    raise EngineMissing(
        f"training on GPUs is requested, and Spark grants {amount:g} GPUs to a task",
        required="spark.task.resource.gpu.amount of 1 or more",
        where="the recipe's spark.settings, or the cluster's",
        remedy="set Spark's settings for GPUs, or use `device: cpu` or `launcher: torchrun`",
    )


def main(path: Path) -> None:
    apply_engine_environment()
    require_state_folder()
    try:
        run_on_spark(path)
    except BloomeryError as failure:
        if not (path.parent / FAILURE).is_file():  # a failure reported by a worker is closer to the cause
            write_document(path.parent / FAILURE, to_failure(failure))
        raise
    finally:
        spark_session.stop_session()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
