"""Trains boosted trees and linear models: fits them, writes the ONNX file that is served, and logs the result.

Shapes: N rows, F columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from bloomery.data_contracts.documents.digests import digest_of_file
from bloomery.data_contracts.records.records import Dataset
from bloomery.models.networks.config import BoostedTrees, TabularEnsemble
from bloomery.models.training.config import Training
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.orchestration.events import Progress, emit
from bloomery.tasks.orchestration.stage_store import Output
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train import fit, run_logging
from bloomery.tasks.train.training_run import TrainingRun

if TYPE_CHECKING:
    import torch

    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.training.data.batches import Examples, ExampleSource
    from bloomery.models.tree_ensembles.boosting import FittedTrees
    from bloomery.models.tree_ensembles.linear import FittedLinear

_MAX_BYTES = 1 << 30  # of training rows, which scikit-learn needs in memory; of more rows, an even sample is fitted


class WrittenTrees(NamedTuple):
    """The ONNX file of boosted trees, or of an ensemble with them.

    `error` is the largest difference of an output from scikit-learn's, or from the average of the ensemble's members.
    """

    network: SessionModule
    digest: str
    num_parameters: int
    error: float


def fit_trees(dataset: Dataset, model: BoostedTrees, training: Training, splits: fit.TrainingSplits) -> FittedTrees:
    """Fits the trees to the training split. The validation split decides how many rounds are kept."""
    import sklearn.ensemble  # noqa: F401 - before the limit, which holds for loaded libraries only
    from threadpoolctl import threadpool_limits

    from bloomery.models.tree_ensembles.boosting import LabelledRows, fit_boosted_trees

    train, val = _sample_training_rows(dataset, splits.train), fit.sample_validation_rows(dataset, splits.val)
    emit(Progress("train", 0, 1, f"boosted trees on {train.num_rows:,} rows"))
    with threadpool_limits(limits=training.num_threads):
        return fit_boosted_trees(
            model,
            LabelledRows(train.x.numpy(), train.y.numpy()),
            LabelledRows(val.x.numpy(), val.y.numpy()),
            fit.make_blueprint(dataset, model).num_outputs,
            seed=training.seed,
            balance_classes=training.class_weights == "balanced",
        )


def fit_linear(
    dataset: Dataset, model: TabularEnsemble, training: Training, splits: fit.TrainingSplits
) -> FittedLinear:
    """Fits ridge or logistic regression to the training split."""
    import sklearn.linear_model  # noqa: F401 - before the limit, which holds for loaded libraries only
    from threadpoolctl import threadpool_limits

    from bloomery.models.tree_ensembles import linear
    from bloomery.models.tree_ensembles.boosting import LabelledRows

    train = _sample_training_rows(dataset, splits.train)
    emit(Progress("train", 0, 1, "a linear model"))
    with threadpool_limits(limits=training.num_threads):
        return linear.fit_linear(
            LabelledRows(train.x.numpy(), train.y.numpy()),
            dataset.layout,
            fit.make_blueprint(dataset, model).num_outputs,
            seed=training.seed,
            balance_classes=training.class_weights == "balanced",
        )


def _sample_training_rows(dataset: Dataset, train: ExampleSource) -> Examples:
    from bloomery.models.training.data.batches import Examples, sample_examples

    if isinstance(train, Examples):
        return train
    num_rows = _MAX_BYTES // (4 * dataset.layout.num_values)
    return sample_examples(settings().path(dataset.train.uri), dataset.key, dataset.layout, num_rows)


def evaluate_trees(trees: FittedTrees, dataset: Dataset, training: Training, splits: fit.TrainingSplits) -> float:
    """The score of the ONNX file on the validation split: accuracy, RMSE in standard units, or that of the recipe."""
    from bloomery.models.inference.runtime import create_session
    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.training.loop import evaluate
    from bloomery.models.tree_ensembles.onnx_graph import build_onnx

    session = create_session(build_onnx(trees, dataset.layout.num_values).SerializeToString())
    return evaluate(SessionModule(session), splits.val, measure=fit.score_measure(dataset, training, splits))[1]


def write_trees(out: Output, dataset: Dataset, model: BoostedTrees, trees: FittedTrees) -> WrittenTrees:
    """Writes `network.onnx` and `network.json`, and compares the file with scikit-learn on the rows of all splits.

    Raises:
        ParityBroken: the outputs differ.
    """
    import onnx

    from bloomery.models.inference.runtime import create_session
    from bloomery.models.onnx_import.importer import SessionModule
    from bloomery.models.tree_ensembles.onnx_graph import build_onnx, count_numbers, measure_parity

    path, blueprint = out.path("network.onnx"), fit.make_blueprint(dataset, model)
    onnx.save(build_onnx(trees, dataset.layout.num_values), path)
    out.path("network.json").write_text(blueprint.model_dump_json(indent=2), encoding="utf-8")
    error = max(measure_parity(trees, x.numpy(), path) for x in rows_of_all_splits(dataset))
    network = SessionModule(create_session(path)).eval()
    return WrittenTrees(network, digest_of_file(path), count_numbers(trees), error)


def rows_of_all_splits(dataset: Dataset) -> Iterator[torch.Tensor]:
    """x float32 (N, F) of the labelled splits, in batches of bounded size."""
    from bloomery.models.training.data.batches import open_examples

    for split in (dataset.train, dataset.val, dataset.test):
        for x, _ in open_examples(settings().path(split.uri), dataset.key, dataset.layout).iterate():
            yield x


def log_trees(run: TrainingRun, out: Output, trees: FittedTrees, written: WrittenTrees) -> None:
    """Logs the same as for a trained network, except for what only gradient descent has; losses are by round."""
    run_id, losses = run.run_id, trees.losses
    sample = fit.sample_validation_rows(run.dataset, run.splits.val)
    steps = [
        (number, {"train_loss": float(train_loss), "val_loss": float(val_loss)})
        for number, (train_loss, val_loss) in enumerate(zip(losses.train, losses.val, strict=True))
    ]
    mlflow_runs.log_metric_steps(run_id, steps)
    mlflow_runs.log_metrics(
        run_id,
        {
            "best_val_loss": float(min(losses.val)),
            "num_parameters": written.num_parameters,
            "rounds": trees.num_rounds,
            "trees_error": written.error,
            "rows_per_second": run_logging.measure_rows_per_second(written.network, sample),
        },
        step=trees.num_rounds,
    )
    run_logging.log_onnx_network(run, out, written.network, sample)
