"""Trains a tabular ensemble: boosted trees and TabM, averaged with the weights that suit the validation split.

Shapes: N rows, K outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.errors import ParityBroken
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.networks.config import TabularEnsemble
from bloomery.models.training.config import Training
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit, run_logging, tree_training
from bloomery.tasks.train.training_run import TrainingRun
from bloomery.tasks.train.tree_training import WrittenTrees

if TYPE_CHECKING:
    import torch

    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.tree_ensembles.boosting import FittedTrees

_TOLERANCE = 1e-3  # of a probability, or a value in standard units


class FittedEnsemble(NamedTuple):
    """Both members, and the weight of the trees; the network has the rest."""

    trees: FittedTrees
    network: fit.FitResult
    tree_weight: float

    def outputs(self, x: torch.Tensor) -> np.ndarray:
        """outputs_NK float64 of the average."""
        from bloomery.models.training.loop import predict
        from bloomery.models.tree_ensembles.blending import blend_outputs
        from bloomery.models.tree_ensembles.boosting import predict_outputs

        network_NK = predict(self.network.network, x).numpy()
        return blend_outputs(predict_outputs(self.trees, x.numpy()), network_NK, self.tree_weight)


def fit_ensemble(
    dataset: Dataset,
    model: TabularEnsemble,
    training: Training,
    splits: fit.TrainingSplits,
    fit_network: Callable[[], fit.FitResult],
) -> FittedEnsemble:
    """Fits the trees and the network, and weighs them by the loss of their average on the validation split."""
    from bloomery.models.training.loop import predict
    from bloomery.models.tree_ensembles.blending import choose_tree_weight
    from bloomery.models.tree_ensembles.boosting import predict_outputs

    trees = tree_training.fit_trees(dataset, model.trees, training, splits)
    network = fit_network()
    sample = fit.sample_validation_rows(dataset, splits.val)
    network_NK = predict(network.network, sample.x).numpy()
    weight = choose_tree_weight(predict_outputs(trees, sample.x.numpy()), network_NK, sample.y.numpy())
    return FittedEnsemble(trees, network, weight)


def evaluate_ensemble(
    ensemble: FittedEnsemble, dataset: Dataset, training: Training, splits: fit.TrainingSplits
) -> float:
    """The score on the validation split: accuracy, RMSE in standard units, or that of the recipe."""
    import torch

    from bloomery.models.training.optimization.loss import score_outputs

    sample, measure = fit.sample_validation_rows(dataset, splits.val), fit.score_measure(dataset, training, splits)
    outputs_NK = ensemble.outputs(sample.x)
    return score_outputs(outputs_NK, sample.y) if measure is None else measure(torch.from_numpy(outputs_NK), sample.y)


def write_ensemble(out: Output, run: TrainingRun, model: TabularEnsemble, ensemble: FittedEnsemble) -> WrittenTrees:
    """Writes `network.onnx` and `network.json`, and compares the file with both members on the rows of all splits.

    Raises:
        ParityBroken: the outputs differ.
    """
    import onnx

    from bloomery.models.export.onnx_exporter import export_onnx
    from bloomery.models.inference.runtime import create_session
    from bloomery.models.networks.blueprint import num_parameters
    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.tree_ensembles.blending import merge_onnx
    from bloomery.models.tree_ensembles.onnx_graph import build_onnx, count_numbers

    dataset, path, member_path = run.dataset, out.path("network.onnx"), out.path("member.onnx")
    blueprint = fit.make_blueprint(dataset, model)
    sample = fit.sample_validation_rows(dataset, run.splits.val)
    export_onnx(ensemble.network.network, sample.x, member_path)
    trees = build_onnx(ensemble.trees, dataset.layout.num_values)
    onnx.save(merge_onnx(trees, onnx.load(member_path), ensemble.tree_weight, blueprint.num_outputs), path)
    member_path.unlink()
    out.path("network.json").write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    network = SessionModule(create_session(path)).eval()
    error = max(_measure_difference(network, ensemble, x) for x in tree_training.rows_of_all_splits(dataset))
    if not error <= _TOLERANCE:
        raise ParityBroken(
            f"ONNX Runtime differs from the average of the members by up to {error:.2g} in a prediction",
            required=f"at most {_TOLERANCE:g} on the rows of all splits",
            where=str(path),
            remedy="report the recipe's section `model`: one of the members is exported wrongly",
        )
    num_numbers = count_numbers(ensemble.trees) if ensemble.tree_weight > 0 else 0
    num_weights = num_parameters(ensemble.network.network) if ensemble.tree_weight < 1 else 0
    return WrittenTrees(network, digest_of_file(path), num_numbers + num_weights, error)


def _measure_difference(network: SessionModule, ensemble: FittedEnsemble, x: torch.Tensor) -> float:
    """The largest difference of a probability, or of a value in standard units."""
    from bloomery.models.inference.runtime import softmax

    expected_NK, outputs_NK = ensemble.outputs(x), network(x).numpy()
    if expected_NK.shape[1] > 1:
        expected_NK, outputs_NK = softmax(expected_NK), softmax(outputs_NK)
    return float(np.abs(expected_NK - outputs_NK).max()) if len(x) else 0.0


def log_ensemble(run: TrainingRun, out: Output, ensemble: FittedEnsemble, written: WrittenTrees) -> None:
    """Logs the weights of the members and the validation report; the losses of the network are logged by epoch."""
    from bloomery.tasks.evaluation.plots import plot_training_curves

    run_id, history = run.run_id, ensemble.network.history
    sample = fit.sample_validation_rows(run.dataset, run.splits.val)
    mlflow_runs.log_metrics(
        run_id,
        {
            "num_parameters": written.num_parameters,
            "rounds": ensemble.trees.num_rounds,
            "tree_weight": ensemble.tree_weight,
            "best_val_loss_of_trees": float(min(ensemble.trees.losses.val)),
            "best_val_loss_of_network": min(epoch.val_loss for epoch in history),
            "trees_error": written.error,
            "rows_per_second": run_logging.measure_rows_per_second(written.network, sample),
        },
        step=len(history),
    )
    folder = out.path("report")
    folder.mkdir()
    plot_training_curves(history, run.score, run.score_unit, folder / "curves.png")
    run_logging.log_onnx_network(run, out, written.network, sample)
