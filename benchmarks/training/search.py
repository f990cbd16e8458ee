"""Measures what `training.search` gains over a network's default settings.

    BLOOMERY_DATA=… python benchmarks/training/search.py [--trials 10] [--seeds 1] [recipe …]

For each recipe it trains the recipe's kind of network on its rows twice: with default settings except for the number of
epochs, and after a search that starts from the defaults. The pipeline's stages train both networks, and both are
evaluated once on the official test split, which the search does not read. A finished training is reused.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

from recipes import evaluate_on_test, prepare_rows

from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.flows.stages import PLAIN_STAGES
from bloomery.models.training.config import Search, Training
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.tracking import mlflow_runs

RECIPES = ("pendigits", "adult")


def default_model(recipe: Recipe) -> Any:
    """Returns the recipe's kind of network with default settings."""
    return type(recipe.model)(kind=recipe.model.kind)  # type: ignore[call-arg, arg-type]


def compare(recipe: Recipe, dataset: Dataset, search: Search, epochs: int, seed: int) -> list[tuple[float, float]]:
    """Returns the scores on the validation and the test split, first of the default settings, then of the search."""
    default = Training(epochs=epochs, seed=seed, num_threads=recipe.training.num_threads, explain=None)
    scores = []
    for name, training in (("default", default), ("searched", default.model_copy(update={"search": search}))):
        start = time.perf_counter()
        trained = PLAIN_STAGES.train(dataset, default_model(recipe), training, None, recipe.engine_settings)
        metrics = evaluate_on_test(trained)
        score = metrics["rmse"] if dataset.task == "regression" else metrics["accuracy"]
        seconds = time.perf_counter() - start
        print(
            f"  {recipe.name} seed {seed} {name}: val {trained.val_score:.4f}, test {metrics}, {seconds:.0f} s",
            flush=True,
        )
        scores.append((trained.val_score, score))
        if training.search is not None:
            print(f"  best trial: {_describe_best_trial(trained.run_id, default_model(recipe), default)}", flush=True)
    return scores


def _describe_best_trial(run_id: str, model: Any, training: Training) -> str:
    """Lists the settings of the best trial that differ from the default."""
    defaults = {
        f"{section}.{name}": str(value)
        for section, config in (("model", model), ("training", training))
        for name, value in config.model_dump().items()
    }
    params = mlflow_runs.client().get_run(run_id).data.params
    changes = [f"{name} {value}" for name, value in sorted(params.items()) if defaults.get(name, value) != value]
    return ", ".join(changes) or "the default settings"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--trial-epochs", type=int, default=5, help="epochs of each trial")
    parser.add_argument(
        "--epochs", type=int, default=12, help="epochs of the default network, and of the best trial's network"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    options = parser.parse_args()
    apply_engine_environment()
    require_state_folder()
    search = Search(trials=options.trials, epochs=options.trial_epochs, space={})
    lines = [
        f"{options.trials} trials of {options.trial_epochs} epochs, {options.epochs} epochs of the compared networks, "
        f"{options.seeds} seed(s)\n",
        "| recipe | network | validation: default | searched | test: default | searched | gain on the test split |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in options.recipes:
        recipe = read_recipe(name)
        dataset = prepare_rows(recipe)
        pairs = [compare(recipe, dataset, search, options.epochs, seed) for seed in range(options.seeds)]
        means = [
            statistics.mean(pair[variant][split] for pair in pairs)
            for split in (0, 1)  # validation, test
            for variant in (0, 1)  # default, searched
        ]
        gains = [searched[1] - default[1] for default, searched in pairs]
        scores = " | ".join(f"{mean:.4f}" for mean in means)
        spread = f" ({min(gains):+.4f} to {max(gains):+.4f})" if len(gains) > 1 else ""
        lines.append(f"| {name} | {recipe.model.kind} | {scores} | {statistics.mean(gains):+.4f}{spread} |")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
