"""train: a network from encoded rows, with everything about it in MLflow."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset, InitialWeights, Privacy, TrainedNetwork
from bloomery.models.networks.config import Custom, Imported, Model
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.device import configure_processor, select_device
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration import prefect_artifacts
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs, resource_usage
from bloomery.tasks.train import fit, import_network
from bloomery.tasks.train.training_curves import TrainingCurves

if TYPE_CHECKING:
    import torch
    from torch import nn

    from bloomery.models.features.encoder import Encoder
    from bloomery.tasks.train.hyperparameter_search import SearchResult


_NO_MEANS = Engine()


def _run_is_kept(record: TrainedNetwork) -> bool:
    return mlflow_runs.run_exists(record.run_id)


@stage(is_whole=_run_is_kept, present=prefect_artifacts.publish_training_run)
def train(
    out: Output,
    dataset: Dataset,
    model: Model,
    training: Training,
    start: InitialWeights | None = None,
    means: Engine = _NO_MEANS,
) -> TrainedNetwork:
    """Afterwards `weights.safetensors` and `network.json` hold the network, and MLflow a run with all figures.

    A network that comes trained lies in `network.onnx` in place of weights, and is not trained further.

    The same arguments give the same weights, bit for bit, on a processor of the same kind, also if the run was killed
    on the way: checkpoints lie outside the stage's folder until the stage has ended.
    """
    from bloomery.models.features.encoder import read_encoder
    from bloomery.models.inference.outputs import score_unit
    from bloomery.models.networks.blueprint import num_parameters, write_network
    from bloomery.models.training.loop import evaluate
    from bloomery.tasks.train import hyperparameter_search

    parts = fit.read_splits(dataset)
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    if isinstance(model, Imported):
        return _import(out, dataset, model, training, parts, encoder)
    if isinstance(model, Custom):
        _require_exportable(out, dataset, model, parts)
    with (
        resource_usage.measure_usage(on_gpu=select_device(training.device) == "cuda") as told,
        mlflow_runs.logged_run(dataset.valid_rows.contract.name, f"train-{out.key[:8]}", out.key) as run_id,
    ):
        if training.search is not None or model.kind == "auto":
            unit = score_unit(encoder)
            found = hyperparameter_search.run_search(
                hyperparameter_search.SearchJob(out.key, run_id, dataset, model, training, start, unit)
            )
            model, training = found.model, found.training
            _log_search(run_id, found)
        processor = configure_processor(training)
        _log_beginning(run_id, dataset, model, training, start, processor)
        fitted, curves = _fit(out.key, run_id, parts, dataset, encoder, model, training, start, means)
        digest = write_network(
            fitted.network, fitted.blueprint, out.path("weights.safetensors"), out.path("network.json")
        )
        spent = told()
        _log_ending(run_id, out, fitted, parts, dataset, encoder, training, curves)
        mlflow_runs.log_resource_usage(run_id, spent)
    shutil.rmtree(fit.checkpoint_folder(out.key), ignore_errors=True)
    hyperparameter_search.delete_search(out.key)
    return TrainedNetwork(
        uri=out.uri("weights.safetensors"),
        network_uri=out.uri("network.json"),
        run_id=run_id,
        num_parameters=num_parameters(fitted.network),
        epochs=len(fitted.history),
        val_score=evaluate(fitted.network, parts.val)[1] * curves.unit,
        slice_columns=training.slices,
        processor=processor,
        initial_weights=start,
        privacy=None if fitted.spent is None else Privacy(epsilon=fitted.spent.epsilon, delta=fitted.spent.delta),
        resource_usage=spent,
        dataset=dataset,
        digest=digest,
    )


def _import(
    out: Output, dataset: Dataset, model: Imported, training: Training, parts: fit.TrainingSplits, encoder: Encoder
) -> TrainedNetwork:
    from bloomery.models.inference.outputs import score_unit
    from bloomery.models.training.loop import evaluate

    path, blueprint_path = out.path("network.onnx"), out.path("network.json")
    with mlflow_runs.logged_run(dataset.valid_rows.contract.name, f"import-{out.key[:8]}", out.key) as run_id:
        processor = configure_processor(training)
        _log_beginning(run_id, dataset, model, training, None, processor)
        adapted = import_network.adapt_network(model, dataset, parts, path, blueprint_path)
        import_network.log_adapted_network(run_id, out, path, adapted, parts, dataset, encoder, training)
    unit = score_unit(encoder)
    return TrainedNetwork(
        uri=out.uri(path.name),
        network_uri=out.uri(blueprint_path.name),
        run_id=run_id,
        num_parameters=adapted.num_parameters,
        epochs=0,
        val_score=evaluate(adapted.network, parts.val)[1] * unit,
        slice_columns=training.slices,
        processor=processor,
        import_error=adapted.error,
        dataset=dataset,
        digest=adapted.digest,
    )


def _fit(
    key: str,
    run_id: str,
    parts: fit.TrainingSplits,
    dataset: Dataset,
    encoder: Encoder,
    model: Model,
    training: Training,
    start: InitialWeights | None,
    means: Engine,
) -> tuple[fit.FitResult, TrainingCurves]:
    """In this process, or in several where the recipe says so."""
    from bloomery.models.inference.outputs import score_unit
    from bloomery.models.training.checkpointing import Checkpointer
    from bloomery.models.training.data.batches import num_batches
    from bloomery.tasks.train.distributed.launcher import fit_distributed

    unit = score_unit(encoder)
    steps_of_epoch = -(-num_batches(parts.train, training.batch_size) // training.accumulate)
    curves = TrainingCurves(run_id, dataset.task, unit, training.epochs, steps_of_epoch, dataset.train.num_rows)
    if training.devices * training.nodes > 1:
        fitted = fit_distributed(
            *(key, dataset, model, training, start),
            means=means.spark,
            on_epoch=curves.on_epoch,
            on_step=curves.on_step,
        )
    else:
        fitted = fit.fit_network(
            parts,
            fit.make_blueprint(dataset, model),
            training,
            start,
            on_epoch=curves.on_epoch,
            on_step=curves.on_step,
            keeper=Checkpointer(fit.checkpoint_folder(key), training.checkpoints),
        )
    curves.close()
    return fitted, curves


def _require_exportable(out: Output, dataset: Dataset, model: Custom, parts: fit.TrainingSplits) -> None:
    """Raises ParityBroken if a network of the user's own could not be served, before time is spent on its training."""
    from bloomery.models.export.onnx_exporter import PARITY_BATCHES, export_onnx
    from bloomery.models.networks.blueprint import build_network

    x, _ = next(parts.val.iterate())
    path = out.path("untrained.onnx")
    export_onnx(build_network(fit.make_blueprint(dataset, model)), x[: max(PARITY_BATCHES)], path)
    path.unlink()


def _log_search(run_id: str, found: SearchResult) -> None:
    figures = {"search_best": found.score, "search_first": found.first_score, "search_trials": found.num_trials}
    mlflow_runs.log_metrics(run_id, figures)


def _log_beginning(
    run_id: str, dataset: Dataset, model: Model, training: Training, start: InitialWeights | None, processor: str
) -> None:
    """What the network is trained from and how."""
    from mlflow.entities import Dataset as TrackedDataset
    from mlflow.entities import DatasetInput, InputTag

    mlflow_runs.log_params(run_id, dict(_flat({"model": model.model_dump(), "training": training.model_dump()})))
    for name, value in {
        "data.digest": dataset.digest,
        "data.source": dataset.valid_rows.raw_rows.source,
        "contract": f"{dataset.valid_rows.contract.name} {dataset.valid_rows.contract.version}",
        "processor": processor,
        **({} if start is None else {"start": start.name, "start.sha256": start.digest}),
    }.items():
        mlflow_runs.client().set_tag(run_id, name, value)
    mlflow_runs.client().log_inputs(
        run_id,
        [
            DatasetInput(
                # MLflow cuts digests at 36 characters; the tag has the whole one.
                TrackedDataset(
                    name=dataset.valid_rows.contract.name,
                    digest=dataset.digest[:36],
                    source_type="local",
                    source=f'{{"uri": "{dataset.train.uri}"}}',
                    profile=f'{{"num_rows": {dataset.train.num_rows}}}',
                ),
                [InputTag("mlflow.data.context", "training")],
            )
        ],
    )
    mlflow_runs.client().log_artifact(run_id, str(settings().path(dataset.valid_rows.report_uri)), "contract")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Each value by its path, such as `training.augment.flip`."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _log_ending(
    run_id: str,
    out: Output,
    fitted: fit.FitResult,
    parts: fit.TrainingSplits,
    dataset: Dataset,
    encoder: Encoder,
    training: Training,
    curves: TrainingCurves,
) -> None:
    """What became of it."""
    from bloomery.models.networks.blueprint import num_parameters
    from bloomery.tasks.evaluation.plots import plot_training_curves
    from bloomery.tasks.evaluation.slices import read_slice_values
    from bloomery.tasks.train.explanations import log_explanations
    from bloomery.tasks.train.validation_report import log_validation_report

    folder = out.path("report")
    folder.mkdir()
    plot_training_curves(fitted.history, dataset.task, curves.unit, folder / "curves.png")
    example = parts.train.example_batch()
    mlflow_runs.log_metrics(
        run_id,
        {
            "best_val_loss": min(epoch.val_loss for epoch in fitted.history),
            "num_parameters": num_parameters(fitted.network),
            **_pace(fitted.network, example, training, curves.rows_per_second),
        },
        step=len(fitted.history),
    )
    if fitted.spent is not None:
        mlflow_runs.log_metrics(run_id, {f"privacy_{name}": value for name, value in fitted.spent._asdict().items()})
    if fitted.transfer is not None:
        names = {"taken": fitted.transfer.loaded, "drawn anew": fitted.transfer.initialised}
        mlflow_runs.client().log_dict(run_id, names, "transfer.json")
    shown = fit.sample_validation_rows(dataset, parts.val)
    mlflow_runs.client().set_tag(run_id, "reported_rows", f"{shown.num_rows} of {parts.val.num_rows}, validation part")
    log_validation_report(run_id, folder, fitted.network, shown, dataset, encoder, training.slices)
    _log_network(run_id, fitted.network, example)
    if training.explain is not None:
        log_explanations(
            run_id,
            out.path("explanations"),
            fitted.network,
            dataset.layout,
            encoder,
            shown,
            training.explain,
            raw=lambda keys: read_slice_values(dataset, keys, encoder.columns),
            seed=training.seed,
        )


def _pace(network: nn.Module, example: torch.Tensor, training: Training, rows_per_second: float) -> dict[str, float]:
    """Rows a second, what arithmetic a row costs, and on a GPU the share of what it could have done."""
    import torch

    from bloomery.models.profiling.flops import count_flops_per_row, peak_flops
    from bloomery.models.training.optimization.mixed_precision import uses_bf16

    flops = count_flops_per_row(network, example)
    figures = {"rows_per_second": rows_per_second, "flops_per_row": flops}
    if select_device(training.device) == "cuda":
        device = torch.device("cuda")
        precision = torch.bfloat16 if uses_bf16(training, device) else torch.float32
        rate = peak_flops(device, precision) * training.devices * training.nodes
        figures["flop_utilization"] = flops * rows_per_second / rate
    return figures


def _log_network(run_id: str, network: nn.Module, example: torch.Tensor) -> None:
    """The network as a `torch.export` program, which opens without Bloomery."""
    import mlflow
    from mlflow.models import infer_signature

    signature = infer_signature(example.numpy(), network(example).detach().numpy())
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own use of what torch deprecates
        mlflow.pytorch.log_model(
            network,
            name="network",
            signature=signature,
            input_example=example.numpy(),
            serialization_format="pt2",
            pip_requirements=[f"torch=={metadata.version('torch')}", f"numpy=={metadata.version('numpy')}"],
        )
