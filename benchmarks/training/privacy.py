"""Measures accuracy by epsilon: the same network on the same rows, trained by DP-SGD and without privacy.

    BLOOMERY_DATA=… python benchmarks/training/privacy.py [--recipe adult] [--epsilons 0.5 1 2 4 8] [--seeds 1]

It uses the rows of a recipe, and a network without layers that mix rows, such as batch normalization. The pipeline's
stages train it, and it is evaluated once on the official test split. The settings are the same for every epsilon and
are not tuned. A finished training in the state folder is reused.
"""

from __future__ import annotations

import argparse
import statistics
from typing import NamedTuple

from recipes import evaluate_on_test, prepare_rows

from bloomery.data_contracts.recipe_sections.engine import Engine
from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.recipe.recipe import read_recipe
from bloomery.flows.stages import PLAIN_STAGES
from bloomery.models.networks.config import LeNet, Mlp, Model
from bloomery.models.training.config import Privacy, Training
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.tracking import mlflow_runs

NETWORKS: dict[str, tuple[Model, Training]] = {
    "adult": (
        Mlp(kind="mlp", hidden=(128, 64), norm="none", dropout=0.0),
        Training(epochs=8, batch_size=512, learning_rate=2e-3, num_threads=2, explain=None),
    ),
    "mnist": (
        LeNet(kind="lenet"),
        Training(epochs=4, batch_size=512, learning_rate=2e-3, num_threads=2, explain=None),
    ),
}


class Result(NamedTuple):
    val_score: float
    test_metrics: dict[str, float]
    privacy: dict[str, float]  # epsilon, delta and noise, as logged; empty without privacy


def train_and_evaluate(dataset: Dataset, model: Model, training: Training, engine: Engine) -> Result:
    trained = PLAIN_STAGES.train(dataset, model, training, None, engine)
    metrics = mlflow_runs.client().get_run(trained.run_id).data.metrics
    privacy = {name.removeprefix("privacy_"): value for name, value in metrics.items() if name.startswith("privacy_")}
    return Result(trained.val_score, evaluate_on_test(trained), privacy)


def format_row(epsilon: float | None, results: list[Result]) -> str:
    """Formats a table row of the mean over seeds."""
    privacy = {name: statistics.mean(result.privacy[name] for result in results) for name in results[0].privacy}
    accuracies = [result.test_metrics["accuracy"] for result in results]
    means = [statistics.mean(result.test_metrics[name] for result in results) for name in results[0].test_metrics]
    label = "without privacy" if epsilon is None else f"{epsilon:g}"
    privacy_cells = f"{privacy['epsilon']:.3f} | {privacy['noise']:.2f}" if privacy else "|"
    return (
        f"| {label} | {privacy_cells} | {statistics.mean(result.val_score for result in results):.4f} "
        f"| {statistics.mean(accuracies):.4f} ({min(accuracies):.4f} to {max(accuracies):.4f}) "
        f"| {', '.join(f'{mean:.4f}' for mean in means[1:])} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=NETWORKS, default="adult")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1, 2, 4, 8])
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    model, training = NETWORKS[options.recipe]
    training = training.model_copy(update={"epochs": options.epochs or training.epochs})
    recipe = read_recipe(options.recipe)
    dataset = prepare_rows(recipe)
    print(
        f"{options.recipe}: {dataset.train.num_rows:,} rows, {model.kind}, {training.epochs} epochs of batches of "
        f"{training.batch_size}, delta {options.delta:g}, {options.seeds} seed(s)\n\n"
        "| epsilon | spent epsilon | noise | validation | test accuracy (range over seeds) | AUC |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for epsilon in [*options.epsilons, None]:
        privacy = None if epsilon is None else Privacy(epsilon=epsilon, delta=options.delta)
        seeded = [training.model_copy(update={"seed": seed, "privacy": privacy}) for seed in range(options.seeds)]
        results = [train_and_evaluate(dataset, model, settings, recipe.engine_settings) for settings in seeded]
        print(format_row(epsilon, results), flush=True)


if __name__ == "__main__":
    main()
