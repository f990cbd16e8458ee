"""Processes that train together, as tasks of a barrier stage of Spark.

`python -m bloomery.tasks.train.distributed.spark_launcher JOB.json`

TorchDistributor starts a torchrun in each task, and that a worker. This is a process of its own: it prints what workers
print, and is ended as torchrun's agent is. When a worker dies the stage fails, and is started again.
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
_ASK_EVERY_S = 5
_ROOMS = ("data_contracts", "models", "tasks")
_TOO_FEW_SLOTS = "SPARK-24819"  # the beginning of what Spark says then


def require_slots(training: Training, means: SparkConfig | None) -> None:
    """Raises RecipeInvalid if the Spark of `means` could never start so many processes."""
    master, wanted = spark_session.spark_master(means), training.devices * training.nodes
    slots = _local_slots(master)
    if master.startswith("sc://"):
        found, required = f"`launcher: spark` on {master}", "a master on which a session of its own can be started"
        remedy = "name the cluster's own master, or use `launcher: torchrun`"
    elif slots is not None and slots < wanted:
        found, required = f"{wanted} processes on Spark's master {master}", f"{wanted} tasks at a time"
        remedy = f"use the master local[{wanted}], or change devices or nodes"
    else:
        return
    raise RecipeInvalid(
        found, required=required, where="the recipe's spark.master or BLOOMERY_SPARK_MASTER", remedy=remedy
    )


def _local_slots(master: str) -> int | None:
    """How many tasks run at a time on this machine; None on a cluster, where only Spark can tell."""
    if master == "local":
        return 1
    stated = re.fullmatch(r"local\[(\*|\d+)(,\s*\d+)?\]", master)
    if stated is None:
        return None
    return os.cpu_count() or 1 if stated[1] == "*" else int(stated[1])


def run_on_spark(path: Path) -> None:
    """Train as the job in the file says, on Spark. Returns once all processes have ended.

    Raises:
        EngineMissing: Spark does not start, has too few slots or gives no GPU; or a process died again and again.
    """
    job = TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))
    code = spark_session.write_code_archive(path.parent / "code.zip", _ROOMS)
    # Spark on this machine hands its environment on; a cluster's executors are told theirs.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    session = spark_session.get_session(
        SparkConfig(master=job.spark.master, settings=_settings(code) | job.spark.settings)
    )
    use_gpu = _has_gpus(session, job.training)

    from pyspark.ml.torch.distributor import TorchDistributor

    num_processes = job.training.devices * job.training.nodes
    distributor = TorchDistributor(num_processes, local_mode=False, use_gpu=use_gpu)
    # Spark starts no stage again that gives a result, once one of its barrier tasks has failed.
    for restarts_left in range(MAX_RESTARTS, -1, -1):
        try:
            distributor.run(run_worker, path)  # given a file instead, it does not see that torchrun has failed
            return
        except Exception as failure:
            told = str(failure)  # while Java is there to be asked
            if _TOO_FEW_SLOTS in told:
                raise _too_few_slots(job, num_processes) from failure
            if not restarts_left or (path.parent / FAILURE).is_file():
                raise _died(told) from failure


def _too_few_slots(job: TrainingJob, num_processes: int) -> EngineMissing:
    return EngineMissing(
        f"Spark's master {spark_session.spark_master(job.spark)} did not give {num_processes} slots at one time",
        required=f"{num_processes} free cores, or GPUs, of executors",
        where="the cluster",
        remedy="wait for other applications to end, add workers, or change devices or nodes",
    )


def _died(told: str) -> EngineMissing:
    return EngineMissing(
        f"processes that train on Spark died, and again after {MAX_RESTARTS} restarts: {told[:500]}",
        required="processes that run to the end",
        where="torchrun.log beside the job's file, and the executors' logs",
        remedy="read the log; docs/distributed.md says what the machines must share",
    )


def _settings(code: Path) -> dict[str, str]:
    return {
        "spark.scheduler.barrier.maxConcurrentTasksCheck.interval": f"{_ASK_EVERY_S}s",
        "spark.scheduler.barrier.maxConcurrentTasksCheck.maxFailures": str(_SLOTS_TIMEOUT_S // _ASK_EVERY_S),
        "spark.dynamicAllocation.enabled": "false",  # Spark refuses barrier stages with it
        "spark.executorEnv.BLOOMERY_HOME": str(settings().home),
        "spark.executorEnv.PYTHONPATH": str(code),
    }


def _has_gpus(session: SparkSession, training: Training) -> bool:
    """Whether each task is given GPUs. Without, a worker sees none, also where its machine has some."""
    amount = float(session.conf.get("spark.task.resource.gpu.amount", "0") or 0)
    if training.device == "cpu" or (amount < 1 and select_device(training.device) == "cpu"):
        return False
    if amount >= 1:
        return True
    raise EngineMissing(
        f"the network is to be trained on GPUs, and Spark's tasks are given {amount:g} of them",
        required="spark.task.resource.gpu.amount of 1 or more",
        where="the recipe's spark.settings, or the cluster's",
        remedy="state Spark's settings for GPUs, or `device: cpu`, or `launcher: torchrun`",
    )


def main(path: Path) -> None:
    apply_engine_environment()
    require_state_folder()
    try:
        run_on_spark(path)
    except BloomeryError as failure:
        if not (path.parent / FAILURE).is_file():  # what a worker has told is nearer to the cause
            write_document(path.parent / FAILURE, to_failure(failure))
        raise
    finally:
        spark_session.stop_session()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
