"""One of several processes that train a network together, started by torchrun:

`torchrun … -m bloomery.tasks.train.distributed.worker JOB.json`

On Spark, each task starts torchrun.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.documents.files import write_text
from bloomery.data_contracts.errors import BloomeryError
from bloomery.data_contracts.recipe_sections.engine import SparkConfig
from bloomery.data_contracts.records.records import Dataset, InitialWeights
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.device import configure_processor, select_device
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.train import fit

if TYPE_CHECKING:
    from bloomery.models.training.loop import EpochResult, StepProgress

WEIGHTS, BLUEPRINT, PROGRESS, RESULT, FAILURE = (
    "weights.safetensors",
    "network.json",
    "progress.jsonl",
    "result.json",
    "failure.json",
)


class TrainingJob(Document):
    """The training of all processes. They write into the folder of the job's file."""

    key: str  # of the train stage
    dataset: Dataset
    model: Model
    training: Training
    initial_weights: InitialWeights | None = None
    spark: SparkConfig = SparkConfig()  # of the launcher `spark`


class ProgressLine(Document):
    """A line of progress: a finished epoch or a step."""

    epoch: tuple[float, ...] | None = None
    step: tuple[float, ...] | None = None


class TrainingResult(Document):
    """The result that the first process writes beside the weights."""

    history: tuple[tuple[float, ...], ...]
    loaded: tuple[str, ...] | None  # names of the initial weights that were used


class WorkerFailure(Document):
    """A `BloomeryError` that a process reports to the launcher."""

    kind: str
    found: str
    required: str
    where: str
    remedy: str


class _WorkerContext(NamedTuple):
    folder: Path
    rank: int


def run_worker(path: Path) -> None:
    """Trains the job together with the other processes of the group."""
    apply_engine_environment()  # first: an executor's environment does not fix the processor's instructions
    require_state_folder()

    import torch
    import torch.distributed as dist

    from bloomery.models.training.process_group import exit_without_finalization

    job = TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))
    on_gpu = select_device(job.training.device) == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    context = _WorkerContext(path.parent, dist.get_rank())
    try:
        _train(job, context, str(device))
    except ConnectionError:
        raise  # another process has died: torchrun restarts all
    except (BloomeryError, OSError, ValueError, TypeError, LookupError) as failure:
        # A restart would fail again, so the launcher is informed and ends the group.
        write_document(context.folder / FAILURE, to_failure(failure))
        raise
    finally:
        dist.destroy_process_group()
    exit_without_finalization()


def _train(job: TrainingJob, context: _WorkerContext, device: str) -> None:
    import torch
    from safetensors.torch import save

    from bloomery.models.training.checkpointing import Checkpointer
    from bloomery.models.training.distributed import parallelize
    from bloomery.models.training.loop import Placement, TrainingHooks

    configure_processor(job.training)
    strategy = job.training.strategy
    checkpointer = Checkpointer(fit.checkpoint_folder(job.key), job.training.checkpoints)
    result = fit.fit_network(
        fit.read_splits(job.dataset),
        fit.make_blueprint(job.dataset, job.model),
        job.training,
        job.initial_weights,
        placement=Placement(
            device=device,
            group=parallelize.data_parallel_group(strategy),
            parallelize=lambda network, loop: parallelize.parallelize(
                network, loop, strategy, torch.device(device), job.training.microbatches
            ),
        ),
        hooks=TrainingHooks(
            on_epoch=lambda epoch: _report_epoch(context, epoch),
            on_step=lambda step: _report_step(context, step),
            load=checkpointer.load,
            save=checkpointer.save,
        ),
    )
    weights = parallelize.gather_weights(result.network)
    if context.rank == 0:
        temporary = context.folder / f".{WEIGHTS}"
        temporary.write_bytes(save({name: tensor.contiguous() for name, tensor in weights.items()}))
        temporary.rename(context.folder / WEIGHTS)
        loaded = None if result.transfer is None else result.transfer.loaded
        history = tuple(map(tuple, result.history))
        write_document(context.folder / RESULT, TrainingResult(history=history, loaded=loaded))


def _report_epoch(context: _WorkerContext, epoch: EpochResult) -> None:
    _append_line(context, ProgressLine(epoch=tuple(epoch)))


def _report_step(context: _WorkerContext, step: StepProgress) -> None:
    _append_line(context, ProgressLine(step=tuple(step)))


def _append_line(context: _WorkerContext, line: ProgressLine) -> None:
    if context.rank == 0:
        with (context.folder / PROGRESS).open("a", encoding="utf-8") as stream:
            stream.write(line.model_dump_json() + "\n")


def to_failure(failure: Exception) -> WorkerFailure:
    """The failure that the launcher raises again; an error of another library becomes EngineMissing."""
    if not isinstance(failure, BloomeryError):
        return WorkerFailure(
            kind="EngineMissing",
            found=f"a training process ended with {type(failure).__name__}: {failure}",
            required="processes that finish",
            where="torchrun.log beside the job's file",
            remedy="read the log; docs/distributed.md lists what the machines must share",
        )
    return WorkerFailure(
        kind=type(failure).__name__,
        found=failure.found,
        required=failure.required,
        where=failure.where,
        remedy=failure.remedy,
    )


def write_document(path: Path, document: Document) -> None:
    """Writes the document with one rename, so that readers never see an incomplete file."""
    write_text(path, document.model_dump_json())


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]))
