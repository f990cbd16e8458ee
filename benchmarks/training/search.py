"""What `training.search` gains over the settings that a network has if nothing is said.

    BLOOMERY_DATA=… python benchmarks/training/search.py [--trials 10] [--seeds 1] [recipe …]

For each recipe, its rows and its kind of network: once with nothing stated but the kind and the number of epochs, and
once after a search, whose first trial is just that. Both are trained by the real stages and judged once on the official
test part, which the search does not see. A kept training is found again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipes import on_test

from bloomery.data_contracts.records.records import Dataset
from bloomery.flows.pipeline import PLAIN_STAGES
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.models.training.config import Search, Training
from bloomery.tasks.infrastructure.engine_environment import apply_engine_environment
from bloomery.tasks.infrastructure.settings import require_state_folder
from bloomery.tasks.ingest.stage import locate_source
from bloomery.tasks.tracking import mlflow_runs

RECIPES = ("pendigits", "adult")


def prepared(recipe: Recipe) -> Dataset:
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    valid_rows = PLAIN_STAGES.validate(rows, recipe.contract)
    return PLAIN_STAGES.prepare(valid_rows, recipe.features, recipe.engine_settings)


def plain_model(recipe: Recipe) -> Any:
    """The recipe's kind of network, with nothing else stated."""
    return type(recipe.model)(kind=recipe.model.kind)  # type: ignore[call-arg, arg-type]


def compared(recipe: Recipe, dataset: Dataset, search: Search, epochs: int, seed: int) -> list[tuple[float, float]]:
    """The score on the validation part and on the test part, as it stands and after the search."""
    plain = Training(epochs=epochs, seed=seed, num_threads=recipe.training.num_threads, explain=None)
    reached = []
    for name, training in (("default", plain), ("searched", plain.model_copy(update={"search": search}))):
        start = time.perf_counter()
        trained = PLAIN_STAGES.train(dataset, plain_model(recipe), training, None)
        figures = on_test(trained)
        score = figures["rmse"] if dataset.task == "regression" else figures["accuracy"]
        took = time.perf_counter() - start
        print(
            f"  {recipe.name} seed {seed} {name}: val {trained.val_score:.4f}, test {figures}, {took:.0f} s", flush=True
        )
        reached.append((trained.val_score, score))
        if training.search is not None:
            print(f"  found {_found(trained.run_id, plain_model(recipe), plain)}", flush=True)
    return reached


def _found(run_id: str, model: Any, plain: Training) -> str:
    """What the best trial states otherwise than the default."""
    default = {
        f"{place}.{name}": str(value)
        for place, stated in (("model", model), ("training", plain))
        for name, value in stated.model_dump().items()
    }
    params = mlflow_runs.client().get_run(run_id).data.params
    others = [f"{name} {value}" for name, value in sorted(params.items()) if default.get(name, value) != value]
    return ", ".join(others) or "the default itself"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--trials", type=int, default=10)
    asked.add_argument("--trial-epochs", type=int, default=5)
    asked.add_argument("--epochs", type=int, default=12, help="of the default, and of the best trial once more")
    asked.add_argument("--seeds", type=int, default=1)
    asked.add_argument("recipes", nargs="*", default=RECIPES)
    chosen = asked.parse_args()
    apply_engine_environment()
    require_state_folder()
    search = Search(trials=chosen.trials, epochs=chosen.trial_epochs, space={})
    lines = [
        f"{chosen.trials} trials of {chosen.trial_epochs} epochs, {chosen.epochs} epochs in the end, "
        f"{chosen.seeds} seed(s)\n",
        "| recipe | network | validation: default | searched | test: default | searched | gain on the test part |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in chosen.recipes:
        recipe = read_recipe(name)
        dataset = prepared(recipe)
        pairs = [compared(recipe, dataset, search, chosen.epochs, seed) for seed in range(chosen.seeds)]
        figures = [statistics.mean(pair[way][part] for pair in pairs) for part in (0, 1) for way in (0, 1)]
        gains = [searched[1] - default[1] for default, searched in pairs]
        told = " | ".join(f"{figure:.4f}" for figure in figures)
        spread = f" ({min(gains):+.4f} to {max(gains):+.4f})" if len(gains) > 1 else ""
        lines.append(f"| {name} | {recipe.model.kind} | {told} | {statistics.mean(gains):+.4f}{spread} |")
    print("\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
