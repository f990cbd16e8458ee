"""train: a network from encoded rows, with everything about it in MLflow."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

from data_contracts.records import Dataset, Trained
from models.config import Model, Training
from tasks import artifacts, tracking
from tasks.events import Progress, emit
from tasks.settings import settings
from tasks.stages import stage
from tasks.store import Output

if TYPE_CHECKING:
    from torch import nn

    from models.batches import Examples
    from models.training import Epoch


def _run_is_kept(record: Trained) -> bool:
    return tracking.run_exists(record.run_id)


@stage(is_whole=_run_is_kept, present=artifacts.training_run)
def train(out: Output, dataset: Dataset, model: Model, training: Training) -> Trained:
    """Afterwards `weights.safetensors` and `network.json` hold the network, and MLflow a run with all figures.

    The same arguments give the same weights, bit for bit, on a processor of the same kind.
    """
    from models import networks
    from models.batches import read_examples
    from models.training import evaluate
    from models.training import train as fit

    processor = networks.fix_randomness(training.seed, training.num_threads)
    processor = f"{processor}, {_instruction_sets()}"
    parts = {
        name: read_examples(settings().path(part.uri), dataset.key, dataset.input_shape)
        for name, part in (("train", dataset.train), ("val", dataset.val), ("test", dataset.test))
    }
    blueprint = networks.Blueprint(config=model, input_shape=dataset.input_shape, num_classes=len(dataset.classes))
    network = networks.build(blueprint)

    def on_epoch(epoch: Epoch) -> None:
        note = f"loss {epoch.train_loss:.4f}, validation {epoch.val_accuracy:.2%}"
        emit(Progress("train", epoch.number, training.epochs, note))

    with tracking.logged_run(dataset.checked.contract.name, f"train-{out.key[:8]}", out.key) as run_id:
        epochs = fit(network, parts["train"], parts["val"], training, seed=training.seed, on_epoch=on_epoch)
        digest = networks.write_network(network, blueprint, out.path("weights.safetensors"), out.path("network.json"))
        val_loss, val_accuracy = evaluate(network, parts["val"])
        parameters = networks.num_parameters(network)
        _log(run_id, out, dataset, model, training, epochs, processor)
        tracking.log_figures(
            run_id,
            {"best_val_loss": val_loss, "best_val_accuracy": val_accuracy, "num_parameters": parameters},
            step=len(epochs),
        )
        _log_confusion(run_id, out, network, parts["val"], dataset)
        _log_network(run_id, network, parts["train"].x[:2].numpy())
    return Trained(
        uri=out.uri("weights.safetensors"),
        network_uri=out.uri("network.json"),
        run_id=run_id,
        num_parameters=parameters,
        epochs=len(epochs),
        val_accuracy=val_accuracy,
        processor=processor,
        dataset=dataset,
        digest=digest,
    )


def _instruction_sets() -> str:
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")
    return ", ".join(f"{name}={os.environ.get(name, 'unset')}" for name in names)


def _log(
    run_id: str,
    out: Output,
    dataset: Dataset,
    model: Model,
    training: Training,
    epochs: Sequence[Epoch],
    processor: str,
) -> None:
    from mlflow.entities import Dataset as TrackedDataset
    from mlflow.entities import DatasetInput, InputTag

    from tasks.pictures import draw_loss

    tracking.log_params(
        run_id,
        {f"model.{name}": value for name, value in model.model_dump().items()}
        | {f"training.{name}": value for name, value in training.model_dump().items()},
    )
    for name, value in {
        "data.digest": dataset.digest,
        "data.source": dataset.checked.rows.source,
        "contract": f"{dataset.checked.contract.name} {dataset.checked.contract.version}",
        "processor": processor,
    }.items():
        tracking.client().set_tag(run_id, name, value)
    tracking.client().log_inputs(
        run_id,
        [
            DatasetInput(
                # MLflow cuts digests at 36 characters; the tag has the whole one.
                TrackedDataset(
                    name=dataset.checked.contract.name,
                    digest=dataset.digest[:36],
                    source_type="local",
                    source=f'{{"uri": "{dataset.train.uri}"}}',
                    profile=f'{{"num_rows": {dataset.train.num_rows}}}',
                ),
                [InputTag("mlflow.data.context", "training")],
            )
        ],
    )
    tracking.log_series(
        run_id,
        [
            (
                epoch.number,
                {
                    "train_loss": epoch.train_loss,
                    "val_loss": epoch.val_loss,
                    "val_accuracy": epoch.val_accuracy,
                    "learning_rate": epoch.learning_rate,
                },
            )
            for epoch in epochs
        ],
    )
    draw_loss(epochs, out.path("loss.png"))
    tracking.client().log_artifact(run_id, str(out.path("loss.png")))
    tracking.client().log_artifact(run_id, str(settings().path(dataset.checked.report_uri)), "contract")


def _log_confusion(run_id: str, out: Output, network: nn.Module, part: Examples, dataset: Dataset) -> None:
    from models.metrics import confusion
    from models.training import predict
    from tasks.pictures import draw_confusion

    answers = predict(network, part.x).argmax(1).numpy()
    counts = confusion(part.y.numpy(), answers, len(dataset.classes))
    draw_confusion(counts, dataset.classes, out.path("confusion.png"))
    tracking.client().log_artifact(run_id, str(out.path("confusion.png")))


def _log_network(run_id: str, network: nn.Module, example: np.ndarray) -> None:
    """The network as a `torch.export` program, which opens without Bloomery."""
    import mlflow
    import torch
    from mlflow.models import infer_signature

    signature = infer_signature(example, network(torch.from_numpy(example)).detach().numpy())
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own use of what torch deprecates
        mlflow.pytorch.log_model(
            network,
            name="network",
            signature=signature,
            input_example=example,
            serialization_format="pt2",
            pip_requirements=[f"torch=={metadata.version('torch')}", f"numpy=={metadata.version('numpy')}"],
        )
