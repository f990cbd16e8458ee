"""Logs a training to its MLflow run: parameters, data, metrics, the validation report and the network."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.records.checkpoint import checkpoint_tags
from bloomery.data_contracts.records.records import InitialWeights
from bloomery.models.networks.config import Model
from bloomery.models.training.config import Training
from bloomery.tasks.checkpoints.input_checkpoints import find_checkpoints
from bloomery.tasks.infrastructure.device import select_device
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit
from bloomery.tasks.train.explanations import log_run_explanations
from bloomery.tasks.train.training_run import TrainingRun

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.training.data.batches import Examples
    from bloomery.tasks.train.training_curves import TrainingCurves


_NAME = re.compile(r"[\w .:/-]+")  # what MLflow takes as a part of a parameter's name


def log_inputs(run: TrainingRun, model: Model, initial_weights: InitialWeights | None, processor: str) -> None:
    """Logs the parameters, the data and the processor of the training."""
    from mlflow.entities import Dataset as TrackedDataset

    run_id, dataset, client = run.run_id, run.dataset, mlflow_runs.client()
    contract = dataset.valid_rows.contract
    parameters = {"model": model.model_dump(), "training": run.training.model_dump()}
    mlflow_runs.log_params(run_id, dict(_flatten(parameters)))
    tags = {
        "data.digest": dataset.digest,
        "data.source": dataset.valid_rows.raw_rows.source,
        "contract": f"{contract.name} {contract.version}",
        "processor": processor,
    }
    if initial_weights is not None:
        tags |= {"start": initial_weights.name, "start.sha256": initial_weights.digest}
    tags |= checkpoint_tags(find_checkpoints(model))
    for name, value in tags.items():
        client.set_tag(run_id, name, value)
    tracked = TrackedDataset(
        name=contract.name,
        digest=dataset.digest[:36],  # the most that MLflow stores; the tag has the complete digest
        source_type="local",
        source=f'{{"uri": "{dataset.train.uri}"}}',
        profile=f'{{"num_rows": {dataset.train.num_rows}}}',
    )
    mlflow_runs.log_training_data(run_id, tracked)
    client.log_artifact(run_id, str(settings().path(dataset.valid_rows.report_uri)), "contract")


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each value with its path, such as `training.augment.flip`. A mapping whose keys are no names is one value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value and all(map(_NAME.fullmatch, value)):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def log_result(run: TrainingRun, out: Output, result: fit.FitResult, curves: TrainingCurves) -> Examples:
    """Logs the metrics, the validation report and the network; returns the validation rows of the report."""
    from bloomery.models.networks.blueprint import num_parameters
    from bloomery.tasks.evaluation.plots import plot_training_curves

    run_id = run.run_id
    folder = out.path("report")
    folder.mkdir()
    if result.history:
        plot_training_curves(result.history, run.score, curves.unit, folder / "curves.png")
    example = run.splits.train.example_batch()
    mlflow_runs.log_metrics(
        run_id,
        {
            **({"best_val_loss": min(epoch.val_loss for epoch in result.history)} if result.history else {}),
            "num_parameters": num_parameters(result.network),
            **_throughput_metrics(result.network, example, run.training, curves.rows_per_second),
        },
        step=len(result.history),
    )
    if result.privacy_spent is not None:
        privacy = result.privacy_spent._asdict()
        mlflow_runs.log_metrics(run_id, {f"privacy_{name}": value for name, value in privacy.items()})
    if result.transfer is not None:
        mlflow_runs.client().log_dict(run_id, result.transfer._asdict(), "transfer.json")
    if result.adapter is not None:
        result.adapter.write(out.path("adapter"))
        mlflow_runs.client().log_artifacts(run_id, str(out.path("adapter")), "adapter")
    sample = log_validation(run, folder, result.network)
    _log_network(run_id, result.network, example)
    return sample


def log_validation(run: TrainingRun, folder: Path, network: nn.Module) -> Examples:
    """Logs the validation report, and `folder` with its plots; returns the validation rows that it covers."""
    from bloomery.tasks.train.validation_report import log_validation_report

    val = run.splits.val
    sample = fit.sample_validation_rows(run.dataset, val)
    rows = f"{sample.num_rows} of {val.num_rows}, validation split"
    mlflow_runs.client().set_tag(run.run_id, "reported_rows", rows)
    log_validation_report(run, folder, network, sample)
    return sample


def log_onnx_network(run: TrainingRun, out: Output, network: SessionModule, sample: Examples) -> None:
    """Logs `network.onnx`, the validation report with the files that `report` already has, and explanations."""
    mlflow_runs.client().log_artifact(run.run_id, str(out.path("network.onnx")), "network")
    folder = out.path("report")
    folder.mkdir(exist_ok=True)
    log_validation(run, folder, network)
    # As a function, since the session has no gradients.
    log_run_explanations(run, out.path("explanations"), network.forward, sample)


def measure_rows_per_second(network: nn.Module, sample: Examples) -> float:
    """Predicted rows per second, of a network that is not trained by gradient descent."""
    start = time.perf_counter()
    network(sample.x)
    return sample.num_rows / (time.perf_counter() - start)


def _throughput_metrics(
    network: nn.Module, example: torch.Tensor, training: Training, rows_per_second: float
) -> dict[str, float]:
    """Rows per second, FLOPs per row and, on a GPU, the share of its peak FLOPs that training used."""
    import torch

    from bloomery.models.profiling.flops import count_flops_per_row, peak_flops
    from bloomery.models.training.optimization.mixed_precision import uses_bf16

    flops = count_flops_per_row(network, example)
    metrics = {"rows_per_second": rows_per_second, "flops_per_row": flops}
    if select_device(training.device) == "cuda":
        device = torch.device("cuda")
        precision = torch.bfloat16 if uses_bf16(training, device) else torch.float32
        peak = peak_flops(device, precision) * training.devices * training.nodes
        metrics["flop_utilization"] = flops * rows_per_second / peak
    return metrics


def _log_network(run_id: str, network: nn.Module, example: torch.Tensor) -> None:
    """Logs the network as a `torch.export` program, which loads without Bloomery."""
    import mlflow
    from mlflow.models import infer_signature

    signature = infer_signature(example.numpy(), network(example).detach().numpy())
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter uses deprecated parts of torch
        mlflow.pytorch.log_model(
            network,
            name="network",
            signature=signature,
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={metadata.version('torch')}", f"numpy=={metadata.version('numpy')}"],
        )
