"""The train stage with boosted trees, and what compress does with them."""

from __future__ import annotations

import pytest

from bloomery.data_contracts.records.records import Dataset
from bloomery.data_contracts.records.scores import Score
from bloomery.models.compression.config import CandidateSpec, Compression
from bloomery.models.networks.config import Auto, BoostedTrees, TabM, TabularEnsemble
from bloomery.models.training.config import Explain, Search, Training
from bloomery.tasks.compress.stage import compress
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.tracking import mlflow_runs
from bloomery.tasks.train.stage import train
from tests.tasks.train.test_stage import dataset_of as dataset_of

pytestmark = pytest.mark.slow

TREES = BoostedTrees(kind="boosted_trees", max_rounds=40, learning_rate=0.2, max_leaves=8)
NETWORK = TabM(kind="tabm", members=4, width=16, embedding=4)
TRAINING = Training(slices=("place",), explain=Explain(rows=2, sample=4))


def test_trees_are_logged_as_a_network_is_and_only_fp32_is_a_candidate(dataset_of) -> None:
    dataset: Dataset = dataset_of()
    trained = train(dataset, TREES, TRAINING)
    metrics = mlflow_runs.client().get_run(trained.run_id).data.metrics
    assert trained.val_score == pytest.approx(metrics["best_val_accuracy"])
    assert trained.val_score > 0.85
    assert trained.origin == f"after {trained.num_rounds} rounds of boosting"
    assert 1 <= trained.num_rounds <= 40
    assert trained.trees_error < 1e-4
    assert metrics["best_val_loss"] == pytest.approx(metrics["val_log_loss"], rel=1e-4)
    artifacts = {artifact.path for artifact in mlflow_runs.client().list_artifacts(trained.run_id)}
    assert {"val_calibration.png", "val_confusion.png", "val_per_slice.json", "network", "explanations"} <= artifacts
    assert {path.suffix for path in settings().path(trained.uri).parent.iterdir() if path.is_file()} == {
        ".onnx",
        ".json",
        ".npy",  # the predictions of baselines
    }
    specs = (CandidateSpec(name="fp32"), CandidateSpec(name="int8", quantize="static"))
    (fp32,) = compress(trained, Compression(latency_rounds=5, candidates=specs)).candidates
    assert (fp32.sha256, fp32.parity_error) == (trained.digest, trained.trees_error)
    assert fp32.score.value > 0.85


def test_equal_arguments_give_equal_trees_of_a_regression(dataset_of) -> None:
    dataset: Dataset = dataset_of(is_regression=True)
    quiet = TRAINING.model_copy(update={"explain": None})
    first = train(dataset, TREES, quiet)
    second = train(dataset, TREES, quiet.model_copy(update={"slices": ()}))
    assert first.digest == second.digest
    assert first.val_score < 70  # the label has a standard deviation of 141


@pytest.mark.parametrize("is_regression", [False, True])
def test_an_ensemble_is_one_file_that_computes_the_average_of_its_members(dataset_of, is_regression: bool) -> None:
    dataset: Dataset = dataset_of(is_regression=is_regression)
    model = TabularEnsemble(
        kind="tabular_ensemble",
        trees=TREES,
        network=NETWORK,
        linear=True,
        decisions="likeliest" if is_regression else "score",
    )
    score = None if is_regression else Score(name="macro_f1")
    training = Training(epochs=3, learning_rate=1e-2, patience=2, explain=Explain(rows=2, sample=4), score=score)
    trained = train(dataset, model, training)
    metrics = mlflow_runs.client().get_run(trained.run_id).data.metrics
    weights = [metrics[f"{name}_weight"] for name in ("trees", "network", "linear")]
    assert sum(weights) == pytest.approx(1)
    assert weights[2] > 0.3  # the label is a linear function of the numbers
    assert trained.trees_error <= 1e-3
    assert trained.origin == f"after {trained.num_rounds} rounds of boosting and {trained.epochs} epochs"
    assert trained.val_score < 60 if is_regression else trained.val_score > 0.9
    assert trained.val_score == pytest.approx(
        metrics["best_val_rmse" if is_regression else "best_val_macro_f1"], rel=1e-4
    )
    params = mlflow_runs.client().get_run(trained.run_id).data.params
    assert ("class_shift" in params) == (not is_regression)
    fp32, *pruned = compress(trained, Compression(latency_rounds=5)).candidates
    assert fp32.sha256 == trained.digest
    assert [candidate.name for candidate in pruned] == ["pruned-25", "pruned-50", "pruned-75", "pruned-90"]
    sizes = [candidate.size_bytes for candidate in (fp32, *pruned)]
    assert sizes == sorted(sizes, reverse=True)  # equal where the linear member has all weight
    assert pruned[1].disagreements


def test_auto_may_choose_trees(dataset_of) -> None:
    search = Search(trials=2, epochs=1, space={"training.learning_rate": (1e-6,)})
    trained = train(
        dataset_of(), Auto(kind="auto"), Training(epochs=1, learning_rate=1e-6, explain=None, search=search)
    )
    assert trained.origin.endswith("rounds of boosting")
