"""Accuracy against epsilon: the same network on the same rows, by DP-SGD under ever more privacy, and without.

    BLOOMERY_DATA=… python benchmarks/training/privacy.py [--recipe adult] [--epsilons 0.5 1 2 4 8] [--seeds 1]

The recipe's rows, and a network without layers that mix rows; the real stages train it, and it is judged once on the
official test part. The settings are the same for every epsilon and were not searched for. A kept training is found.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipes import on_test
from search import prepared

from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.pipeline import PLAIN_STAGES
from bloomery.flows.recipe.recipe import read_recipe
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


class Reached(NamedTuple):
    val_score: float
    figures: dict[str, float]  # on the test part
    spent: dict[str, float]  # of the budget of privacy: epsilon, delta and noise


def reach(dataset: Dataset, model: Model, training: Training) -> Reached:
    trained = PLAIN_STAGES.train(dataset, model, training, None)
    metrics = mlflow_runs.client().get_run(trained.run_id).data.metrics
    spent = {name.removeprefix("privacy_"): value for name, value in metrics.items() if name.startswith("privacy_")}
    return Reached(trained.val_score, on_test(trained), spent)


def line(epsilon: float | None, all_reached: list[Reached]) -> str:
    spent = {name: statistics.mean(one.spent[name] for one in all_reached) for name in all_reached[0].spent}
    accuracies = [one.figures["accuracy"] for one in all_reached]
    others = [f"{statistics.mean(one.figures[name] for one in all_reached):.4f}" for name in all_reached[0].figures][1:]
    stated = "without privacy" if epsilon is None else f"{epsilon:g}"
    noise = f"{spent['epsilon']:.3f} | {spent['noise']:.2f}" if spent else "|"
    return (
        f"| {stated} | {noise} | {statistics.mean(one.val_score for one in all_reached):.4f} "
        f"| {statistics.mean(accuracies):.4f} ({min(accuracies):.4f} to {max(accuracies):.4f}) "
        f"| {', '.join(others)} |"
    )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--recipe", choices=NETWORKS, default="adult")
    asked.add_argument("--epsilons", type=float, nargs="+", default=[0.5, 1, 2, 4, 8])
    asked.add_argument("--delta", type=float, default=1e-5)
    asked.add_argument("--seeds", type=int, default=1)
    asked.add_argument("--epochs", type=int)
    chosen = asked.parse_args()
    apply_engine_environment()
    require_state_folder()
    model, training = NETWORKS[chosen.recipe]
    training = training.model_copy(update={"epochs": chosen.epochs or training.epochs})
    dataset = prepared(read_recipe(chosen.recipe))
    print(
        f"{chosen.recipe}: {dataset.train.num_rows:,} rows, {model.kind}, {training.epochs} epochs of batches of "
        f"{training.batch_size}, delta {chosen.delta:g}, {chosen.seeds} seed(s)\n\n"
        "| epsilon | spent | noise | validation | test accuracy (range over seeds) | AUC |\n"
        "| ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for epsilon in [*chosen.epsilons, None]:
        privacy = None if epsilon is None else Privacy(epsilon=epsilon, delta=chosen.delta)
        own = [training.model_copy(update={"seed": seed, "privacy": privacy}) for seed in range(chosen.seeds)]
        print(line(epsilon, [reach(dataset, model, one) for one in own]), flush=True)


if __name__ == "__main__":
    main()
