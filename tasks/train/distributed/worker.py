"""One of several processes that train a network together. torchrun starts it:

`torchrun … -m bloomery.tasks.train.distributed.worker JOB.json`

On Spark a torchrun in each task does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.documents.documents import Document
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
    """What the processes are to do. They write into the folder that the job's file lies in."""

    key: str  # of the stage
    dataset: Dataset
    model: Model
    training: Training
    start: InitialWeights | None
    spark: SparkConfig = SparkConfig()  # where the launcher `spark` starts them


class ProgressLine(Document):
    """A line of progress: an epoch that has ended, or a step."""

    epoch: tuple[float, ...] | None = None
    step: tuple[float, ...] | None = None


class TrainingResult(Document):
    """What the first process leaves behind beside the weights."""

    history: tuple[tuple[float, ...], ...]
    taken: tuple[str, ...] | None  # weights that another network gave


class WorkerFailure(Document):
    """An error of ours, as the first process that met it tells it."""

    kind: str
    found: str
    required: str
    where: str
    remedy: str


class _Place(NamedTuple):
    folder: Path
    rank: int


def run_worker(path: Path) -> None:
    """Train as the job says, together with the other processes of the group."""
    apply_engine_environment()  # first: an executor's environment does not fix the processor's instructions
    require_state_folder()

    import torch
    import torch.distributed as dist

    job = TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))
    on_gpu = select_device(job.training.device) == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    place = _Place(path.parent, dist.get_rank())
    try:
        _train(job, place, str(device))
    except ConnectionError:
        raise  # another process has died: all are started again
    except (BloomeryError, OSError, ValueError, TypeError, LookupError) as failure:
        # It would come again, so the starter is told and ends the group.
        write_document(place.folder / FAILURE, to_failure(failure))
        raise
    finally:
        dist.destroy_process_group()


def _train(job: TrainingJob, place: _Place, device: str) -> None:
    import torch
    from safetensors.torch import save

    from bloomery.models.training.checkpointing import Checkpointer
    from bloomery.models.training.distributed import parallelize
    from bloomery.models.training.loop import Placement

    configure_processor(job.training)
    strategy = job.training.strategy
    fitted = fit.fit_network(
        fit.read_splits(job.dataset),
        fit.make_blueprint(job.dataset, job.model),
        job.training,
        job.start,
        placement=Placement(
            device=device,
            group=parallelize.data_parallel_group(strategy),
            parallelize=lambda network, loop: parallelize.parallelize(
                network, loop, strategy, torch.device(device), job.training.microbatches
            ),
        ),
        keeper=Checkpointer(fit.checkpoint_folder(job.key), job.training.checkpoints),
        on_epoch=lambda epoch: _tell_epoch(place, epoch),
        on_step=lambda step: _tell_step(place, step),
    )
    weights = parallelize.gather_weights(fitted.network)
    if place.rank == 0:
        beside = place.folder / f".{WEIGHTS}"
        beside.write_bytes(save({name: tensor.contiguous() for name, tensor in weights.items()}))
        beside.rename(place.folder / WEIGHTS)
        taken = None if fitted.transfer is None else fitted.transfer.loaded
        write_document(place.folder / RESULT, TrainingResult(history=tuple(map(tuple, fitted.history)), taken=taken))


def _tell_epoch(place: _Place, epoch: EpochResult) -> None:
    _tell(place, ProgressLine(epoch=tuple(epoch)))


def _tell_step(place: _Place, step: StepProgress) -> None:
    _tell(place, ProgressLine(step=tuple(step)))


def _tell(place: _Place, told: ProgressLine) -> None:
    if place.rank == 0:
        with (place.folder / PROGRESS).open("a", encoding="utf-8") as stream:
            stream.write(told.model_dump_json() + "\n")


def to_failure(failure: Exception) -> WorkerFailure:
    """An error as it is told to the starter; one that is not ours as EngineMissing."""
    if not isinstance(failure, BloomeryError):
        return WorkerFailure(
            kind="EngineMissing",
            found=f"a process that trains ended with {type(failure).__name__}: {failure}",
            required="processes that run to the end",
            where="torchrun.log beside the job's file",
            remedy="read the log; docs/distributed.md says what the machines must share",
        )
    return WorkerFailure(
        kind=type(failure).__name__,
        found=failure.found,
        required=failure.required,
        where=failure.where,
        remedy=failure.remedy,
    )


def write_document(path: Path, document: Document) -> None:
    """Afterwards the file holds the document, whole."""
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    beside.write_text(document.model_dump_json(), encoding="utf-8")
    beside.replace(path)


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]))
