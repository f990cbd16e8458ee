"""Stage `train`: trains a network on encoded rows and logs everything about it in MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset, InitialWeights, Privacy, ResourceUsage, TrainedNetwork
from bloomery.models.networks.config import BoostedTrees, Custom, Fused, Imported, Model, TabularEnsemble
from bloomery.models.training.config import Training
from bloomery.tasks.checkpoints.input_checkpoints import find_checkpoints, require_unchanged_weights
from bloomery.tasks.infrastructure.device import configure_processor, select_device
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration import prefect_artifacts
from bloomery.tasks.orchestration.stage import stage
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs, resource_usage
from bloomery.tasks.train import fit, import_network, out_of_scope, run_logging
from bloomery.tasks.train.baselines import fit_baselines
from bloomery.tasks.train.explanations import log_run_explanations
from bloomery.tasks.train.score_checks import require_defined_score
from bloomery.tasks.train.training_curves import TrainingCurves
from bloomery.tasks.train.training_run import TrainingRun

if TYPE_CHECKING:
    from torch import nn

    from bloomery.models.features.encoder import Encoder
    from bloomery.models.tree_ensembles.boosting import FittedTrees
    from bloomery.tasks.train.tree_training import WrittenTrees

_DEFAULT_ENGINE = Engine()


def _run_exists(record: TrainedNetwork) -> bool:
    return mlflow_runs.run_exists(record.run_id)


@stage(is_complete=_run_exists, publish=prefect_artifacts.publish_training_run)
def train(
    out: Output,
    dataset: Dataset,
    model: Model,
    training: Training,
    initial_weights: InitialWeights | None = None,
    engine: Engine = _DEFAULT_ENGINE,
) -> TrainedNetwork:
    """Trains a network; writes `weights.safetensors` and `network.json`, and logs an MLflow run.

    An imported network is not trained further, and boosted trees have no weights: these are written to `network.onnx`.

    The same arguments give the same weights, bit for bit, on a processor of the same kind, even if the run was killed
    in between: checkpoints are kept outside the stage's folder until the stage has finished.
    """
    from bloomery.models.features.encoder import read_encoder
    from bloomery.tasks.train import hyperparameter_search

    splits = fit.read_splits(dataset, training)
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    require_defined_score(dataset, training, splits)
    out_of_scope.require_class(dataset, training)
    require_unchanged_weights(model)
    if isinstance(model, Imported):
        return _import(out, dataset, model, training, splits, encoder)
    if _has_code(model):
        _require_exportable(out, dataset, model, splits)
    if model.kind not in ("auto", "boosted_trees", "tabular_ensemble"):
        fit.require_valid_layers(splits, fit.make_blueprint(dataset, model), training)
    with (
        resource_usage.measure_usage(use_gpu=select_device(training.device) == "cuda") as read_usage,
        mlflow_runs.logged_run(dataset.valid_rows.contract.name, f"train-{out.key[:8]}", out.key) as run_id,
    ):
        run = TrainingRun(run_id, dataset, encoder, splits, training)
        unit = run.score_unit
        if training.search is not None or model.kind == "auto":
            search = hyperparameter_search.run_search(
                hyperparameter_search.SearchJob(out.key, run_id, dataset, model, training, initial_weights, unit)
            )
            model, training = search.model, search.training
            run = run._replace(training=training)
            hyperparameter_search.log_search(run_id, search)
        processor = configure_processor(training)
        run_logging.log_inputs(run, model, initial_weights, processor)
        if isinstance(model, BoostedTrees):
            trained = _train_trees(out, run, model, read_usage)
        elif isinstance(model, TabularEnsemble):
            trained = _train_ensemble(out, run, model, engine, read_usage)
        else:
            trained = _train_network(out, run, model, initial_weights, engine, read_usage)
        assert trained.resource_usage is not None
        mlflow_runs.log_resource_usage(run_id, trained.resource_usage)
        simple_models = fit_baselines(run, out)
    shutil.rmtree(fit.checkpoint_folder(out.key), ignore_errors=True)
    hyperparameter_search.delete_search(out.key)
    return trained.model_copy(
        update={
            "slice_columns": training.slices,
            "processor": processor,
            "val_score": trained.val_score * unit,
            "stated_score": training.score,
            "baselines": simple_models,
        }
    )


def _train_network(
    out: Output,
    run: TrainingRun,
    model: Model,
    initial_weights: InitialWeights | None,
    engine: Engine,
    read_usage: Callable[[], ResourceUsage],
) -> TrainedNetwork:
    """Trains by gradient descent, and logs the result. The score of the record is in standard units."""
    from bloomery.models.networks.blueprint import num_parameters, write_network

    result, curves = _fit(out.key, run, model, initial_weights, engine)
    scope_shift = out_of_scope.shift_decisions(run, result.network)
    digest = write_network(result.network, result.blueprint, out.path("weights.safetensors"), out.path("network.json"))
    usage = read_usage()
    sample = run_logging.log_result(run, out, result, curves)
    log_run_explanations(run, out.path("explanations"), result.network, sample)
    privacy_spent = result.privacy_spent
    return TrainedNetwork(
        uri=out.uri("weights.safetensors"),
        network_uri=out.uri("network.json"),
        run_id=run.run_id,
        num_parameters=num_parameters(result.network),
        epochs=len(result.history),
        val_score=_validate(result.network, run),
        processor="",
        initial_weights=initial_weights,
        checkpoints=find_checkpoints(model),
        transfer=fit.describe_transfer(result.transfer),
        privacy=None if privacy_spent is None else Privacy(epsilon=privacy_spent.epsilon, delta=privacy_spent.delta),
        scope_shift=scope_shift,
        resource_usage=usage,
        dataset=run.dataset,
        digest=digest,
    )


def _train_trees(
    out: Output, run: TrainingRun, model: BoostedTrees, read_usage: Callable[[], ResourceUsage]
) -> TrainedNetwork:
    """Fits boosted trees, and logs the result. The score of the record is in standard units."""
    from bloomery.tasks.train import tree_training

    trees = tree_training.fit_trees(run.dataset, model, run.training, run.splits)
    written = tree_training.write_trees(out, run.dataset, model, trees)
    usage = read_usage()
    tree_training.log_trees(run, out, trees, written)
    return _record_trees(out, run, trees, written, 0, usage)


def _train_ensemble(
    out: Output, run: TrainingRun, model: TabularEnsemble, engine: Engine, read_usage: Callable[[], ResourceUsage]
) -> TrainedNetwork:
    """Fits boosted trees and TabM, and logs the result. The score of the record is in standard units."""
    from bloomery.tasks.train import ensemble_training

    def fit_network() -> fit.FitResult:
        return _fit(out.key, run, model.network, None, engine)[0]

    ensemble = ensemble_training.fit_ensemble(run.dataset, model, run.training, run.splits, fit_network)
    written = ensemble_training.write_ensemble(out, run, model, ensemble)
    usage = read_usage()
    ensemble_training.log_ensemble(run, out, ensemble, written)
    return _record_trees(out, run, ensemble.trees, written, len(ensemble.network.history), usage)


def _record_trees(
    out: Output, run: TrainingRun, trees: FittedTrees, written: WrittenTrees, epochs: int, usage: ResourceUsage
) -> TrainedNetwork:
    """The record of boosted trees, or of an ensemble with them whose network has learnt for `epochs`."""
    return TrainedNetwork(
        uri=out.uri("network.onnx"),
        network_uri=out.uri("network.json"),
        run_id=run.run_id,
        num_parameters=written.num_parameters,
        epochs=epochs,
        num_rounds=trees.num_rounds,
        val_score=_validate(written.network, run),
        processor="",
        trees_error=written.error,
        resource_usage=usage,
        dataset=run.dataset,
        digest=written.digest,
    )


def _import(
    out: Output, dataset: Dataset, model: Imported, training: Training, splits: fit.TrainingSplits, encoder: Encoder
) -> TrainedNetwork:
    path, blueprint_path = out.path("network.onnx"), out.path("network.json")
    with mlflow_runs.logged_run(dataset.valid_rows.contract.name, f"import-{out.key[:8]}", out.key) as run_id:
        run = TrainingRun(run_id, dataset, encoder, splits, training)
        processor = configure_processor(training)
        run_logging.log_inputs(run, model, None, processor)
        adapted = import_network.adapt_network(model, dataset, splits, path, blueprint_path)
        import_network.log_adapted_network(run, out, adapted)
        simple_models = fit_baselines(run, out)
    return TrainedNetwork(
        uri=out.uri(path.name),
        network_uri=out.uri(blueprint_path.name),
        run_id=run_id,
        num_parameters=adapted.num_parameters,
        epochs=0,
        val_score=_validate(adapted.network, run) * run.score_unit,
        stated_score=training.score,
        slice_columns=training.slices,
        baselines=simple_models,
        processor=processor,
        import_error=adapted.error,
        dataset=dataset,
        digest=adapted.digest,
    )


def _fit(
    key: str, run: TrainingRun, model: Model, initial_weights: InitialWeights | None, engine: Engine
) -> tuple[fit.FitResult, TrainingCurves]:
    """Trains in this process, or in several if the recipe requests them."""
    from bloomery.models.training.checkpointing import Checkpointer
    from bloomery.models.training.loop import TrainingHooks
    from bloomery.models.training.stages import plan_epochs
    from bloomery.tasks.train.distributed.launcher import fit_distributed
    from bloomery.tasks.train.distributed.worker import TrainingJob

    dataset, training, splits = run.dataset, run.training, run.splits
    rows = splits.pretraining if training.pretrains else splits.train
    curves = TrainingCurves(run.run_id, run.score, run.score_unit, plan_epochs(training, splits.train, rows))
    if training.devices * training.nodes > 1:
        job = TrainingJob(
            key=key,
            dataset=dataset,
            model=model,
            training=training,
            initial_weights=initial_weights,
            spark=engine.spark,
        )
        result = fit_distributed(job, on_epoch=curves.on_epoch, on_step=curves.on_step)
    else:
        checkpointer = Checkpointer(fit.checkpoint_folder(key), training.checkpoints)
        hooks = TrainingHooks(curves.on_epoch, curves.on_step, checkpointer.load, checkpointer.save)
        if training.stages:
            hooks = TrainingHooks(curves.on_epoch, curves.on_step, stage_folder=fit.checkpoint_folder(key))
        blueprint = fit.make_blueprint(dataset, model)
        result = fit.fit_network(splits, blueprint, training, initial_weights, hooks=hooks)
    curves.close()
    return result, curves


def _validate(network: nn.Module, run: TrainingRun) -> float:
    """The score of the validation split, without its unit."""
    from bloomery.models.training.loop import evaluate

    return evaluate(network, run.splits.val, measure=run.measure)[1]


def _has_code(model: Model) -> bool:
    """Whether the network, or a branch of it, is the recipe's own. Files of imported branches are not loaded yet."""
    branches = tuple((model.branches or {}).values()) if isinstance(model, Fused) else (model,)
    has_file = any(isinstance(branch, Imported) for branch in branches)
    return any(isinstance(branch, Custom) for branch in branches) and not has_file


def _require_exportable(out: Output, dataset: Dataset, model: Model, splits: fit.TrainingSplits) -> None:
    """Exports the untrained network, so that a custom network that cannot be served fails before its training.

    Raises:
        ParityBroken: the exported network computes other outputs.
    """
    from bloomery.models.export.onnx_exporter import PARITY_BATCHES, export_onnx
    from bloomery.models.networks.blueprint import build_network

    x, _ = next(splits.val.iterate())
    path = out.path("untrained.onnx")
    export_onnx(build_network(fit.make_blueprint(dataset, model)), x[: max(PARITY_BATCHES)], path)
    path.unlink()
