"""Trains a tabular ensemble: boosted trees, TabM and a linear model, averaged with weights by the validation split.

Shapes: N rows, K outputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.networks.config import TabularEnsemble
from bloomery.models.training.config import Training
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit, run_logging, tree_training
from bloomery.tasks.train.training_run import TrainingRun
from bloomery.tasks.train.tree_training import WrittenTrees

if TYPE_CHECKING:
    import onnx
    import torch

    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.training.data.batches import Examples, ExampleSource
    from bloomery.models.tree_ensembles.boosting import FittedTrees
    from bloomery.models.tree_ensembles.linear import FittedLinear

_MEMBERS = ("trees", "network", "linear")
_TOLERANCE = 1e-3  # of a probability, or a value in standard units


class FittedEnsemble(NamedTuple):
    """The members, their weights in the order trees, network, linear model, and the shift of the classes' logits."""

    trees: FittedTrees
    network: fit.FitResult
    linear: FittedLinear | None
    weights: tuple[float, ...] = ()
    shift: np.ndarray | None = None

    def member_outputs(self, x: torch.Tensor) -> list[np.ndarray]:
        """outputs_NK of each member."""
        from bloomery.models.training.loop import predict
        from bloomery.models.tree_ensembles import boosting, linear

        outputs = [boosting.predict_outputs(self.trees, x.numpy()), predict(self.network.network, x).numpy()]
        return outputs if self.linear is None else [*outputs, linear.predict_outputs(self.linear, x.numpy())]

    def outputs(self, x: torch.Tensor) -> np.ndarray:
        """outputs_NK float64 of the average."""
        from bloomery.models.tree_ensembles.blending import blend_outputs

        outputs_NK = blend_outputs(self.member_outputs(x), self.weights)
        return outputs_NK if self.shift is None else outputs_NK + self.shift

    @property
    def weights_by_name(self) -> dict[str, float]:
        return dict(zip(_MEMBERS, self.weights, strict=False))


def fit_ensemble(
    dataset: Dataset,
    model: TabularEnsemble,
    training: Training,
    splits: fit.TrainingSplits,
    fit_network: Callable[[], fit.FitResult],
) -> FittedEnsemble:
    """Fits the members, and weighs them by the loss of their average on the validation split."""
    from bloomery.models.tree_ensembles.blending import choose_weights

    ensemble = FittedEnsemble(
        trees=tree_training.fit_trees(dataset, model.trees, training, splits),
        linear=tree_training.fit_linear(dataset, model, training, splits) if model.linear else None,
        network=fit_network(),
    )
    sample = fit.sample_validation_rows(dataset, splits.val)
    ensemble = ensemble._replace(weights=choose_weights(ensemble.member_outputs(sample.x), sample.y.numpy()))
    if model.decisions == "score":
        ensemble = ensemble._replace(shift=_choose_shift(ensemble, training, splits.train, sample))
    return ensemble


def _choose_shift(ensemble: FittedEnsemble, training: Training, train: ExampleSource, sample: Examples) -> np.ndarray:
    """The shift of the logits that suits the recipe's score on validation rows."""
    from bloomery.models.tree_ensembles.class_shift import SHIFTED_SCORES, choose_class_shift

    labels = train.labels(read_all=True).numpy()
    counts_K = np.bincount(labels[labels >= 0], minlength=ensemble.trees.num_outputs)
    (name,) = (name for name in SHIFTED_SCORES if training.score is not None and training.score.name == name)
    return choose_class_shift(ensemble.outputs(sample.x), sample.y.numpy(), counts_K, name)


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
    """Writes `network.onnx` and `network.json`, and compares the file with the members on the rows of all splits.

    Raises:
        ParityBroken: the outputs differ.
    """
    import onnx

    from bloomery.models.inference.parity import require_parity
    from bloomery.models.inference.runtime import create_session
    from bloomery.models.onnx_import.importer import SessionModule

    dataset, path = run.dataset, out.path("network.onnx")
    blueprint = fit.make_blueprint(dataset, model)
    onnx.save(_build_onnx(out, run, ensemble), path)
    out.path("network.json").write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    network = SessionModule(create_session(path)).eval()
    error = max(_measure_difference(network, ensemble, x) for x in tree_training.rows_of_all_splits(dataset))
    require_parity(
        error,
        _TOLERANCE,
        compared="ONNX Runtime and the average of the members",
        rows="the rows of all splits",
        path=path,
        remedy="report the recipe's section `model`: one of the members is exported wrongly",
    )
    return WrittenTrees(network, digest_of_file(path), _count_numbers(ensemble), error)


def _build_onnx(out: Output, run: TrainingRun, ensemble: FittedEnsemble) -> onnx.ModelProto:
    """One file of all members."""
    import onnx

    from bloomery.models.export.onnx_exporter import export_onnx
    from bloomery.models.tree_ensembles import linear, onnx_graph
    from bloomery.models.tree_ensembles.blending import merge_onnx

    layout, path = run.dataset.layout, out.path("member.onnx")
    export_onnx(ensemble.network.network, fit.sample_validation_rows(run.dataset, run.splits.val).x, path)
    files = [onnx_graph.build_onnx(ensemble.trees, layout.num_values), onnx.load(path)]
    path.unlink()
    if ensemble.linear is not None:
        files.append(linear.build_onnx(ensemble.linear, layout.num_values))
    members = dict(zip(_MEMBERS, zip(files, ensemble.weights, strict=True), strict=False))
    return merge_onnx(members, ensemble.trees.num_outputs, ensemble.shift)


def _count_numbers(ensemble: FittedEnsemble) -> int:
    """The fitted numbers of the members that the file has."""
    from bloomery.models.networks.blueprint import num_parameters
    from bloomery.models.tree_ensembles.onnx_graph import count_numbers

    counts = [count_numbers(ensemble.trees), num_parameters(ensemble.network.network)]
    if ensemble.linear is not None:
        counts.append(ensemble.linear.num_numbers)
    return sum(count for count, weight in zip(counts, ensemble.weights, strict=True) if weight > 0)


def _measure_difference(network: SessionModule, ensemble: FittedEnsemble, x: torch.Tensor) -> float:
    """The largest difference of a probability, or of a value in standard units; of a larger value than 1, a share."""
    from bloomery.models.inference.runtime import softmax

    expected_NK, outputs_NK = ensemble.outputs(x), network(x).numpy()
    if expected_NK.shape[1] > 1:
        expected_NK, outputs_NK = softmax(expected_NK), softmax(outputs_NK)
    differences_NK = np.abs(expected_NK - outputs_NK) / np.maximum(np.abs(expected_NK), 1.0)
    return float(differences_NK.max()) if len(x) else 0.0


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
            **{f"{name}_weight": weight for name, weight in ensemble.weights_by_name.items()},
            "best_val_loss_of_trees": float(min(ensemble.trees.losses.val)),
            "best_val_loss_of_network": min(epoch.val_loss for epoch in history),
            "trees_error": written.error,
            "rows_per_second": run_logging.measure_rows_per_second(written.network, sample),
        },
        step=len(history),
    )
    if ensemble.shift is not None:
        shifts = {
            str(name): round(float(shift), 4) for name, shift in zip(run.dataset.classes, ensemble.shift, strict=True)
        }
        mlflow_runs.log_params(run_id, {"class_shift": json.dumps(shifts)})
    folder = out.path("report")
    folder.mkdir()
    plot_training_curves(history, run.score, run.score_unit, folder / "curves.png")
    run_logging.log_onnx_network(run, out, written.network, sample)
