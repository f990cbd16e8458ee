"""Measures the metrics of each recipe's network on its official test split, over several seeds.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/training/recipes.py [--seeds 0 1 2] [--threads 1] [--recipes …]

It prints a line for each seed, and a table row for each recipe. Networks are evaluated in PyTorch, before compression,
once after training. Times are those of the stage `train`, including its plots and explanations. A finished training in
the state folder is reused, and then takes almost no time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

from bloomery.data_contracts.records.records import Dataset, TrainedNetwork
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.flows.stages import PLAIN_STAGES
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.ingest.stage import locate_source

RECIPES = ("pendigits", "adult", "spoken-digits", "beijing-pm25", "mnist", "clinc150", "fashion-mnist")


class Result(NamedTuple):
    seed: int
    val_score: float
    test_metrics: dict[str, float]
    wall_s: float
    processor_s: float


def prepare_rows(recipe: Recipe) -> Dataset:
    """Runs the stages `ingest` to `prepare`."""
    raw_rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    valid_rows = PLAIN_STAGES.validate(raw_rows, recipe.contract)
    return PLAIN_STAGES.prepare(valid_rows, recipe.features, recipe.engine_settings)


def train_and_evaluate(recipe: Recipe, seed: int, num_threads: int) -> Result:
    """Trains with `seed`, and evaluates the network on the test split."""
    dataset = prepare_rows(recipe)
    training = recipe.training.model_copy(update={"seed": seed, "num_threads": num_threads})
    wall, processor = time.perf_counter(), time.process_time()
    trained = PLAIN_STAGES.train(dataset, recipe.model, training, None, recipe.engine_settings)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Result(seed, trained.val_score, evaluate_on_test(trained), wall, processor)


def evaluate_on_test(trained: TrainedNetwork) -> dict[str, float]:
    """Returns the metrics on the test split. With a class `oos` (out of scope), both kinds of rows have one."""
    import numpy as np

    from bloomery.models.evaluation.metrics import roc_auc
    from bloomery.models.features.encoder import decode, read_encoder
    from bloomery.models.inference.outputs import predictions_from
    from bloomery.models.networks.blueprint import read_network
    from bloomery.models.training.data.batches import read_examples
    from bloomery.models.training.loop import predict

    dataset = trained.dataset
    network, _ = read_network(settings().path(trained.uri), settings().path(trained.network_uri))
    test = read_examples(settings().path(dataset.test.uri), dataset.key, dataset.layout)
    outputs = predict(network, test.x).numpy()
    encoder = read_encoder(settings().path(dataset.encoder_uri))
    if dataset.task == "regression":
        errors = decode(encoder, outputs) - decode(encoder, test.y.numpy()[:, None])
        return {"rmse": float(np.sqrt(np.mean(errors**2))), "mae": float(np.abs(errors).mean())}
    truth = test.y.numpy()
    is_correct = outputs.argmax(1) == truth
    metrics = {"accuracy": float(is_correct.mean())}
    if len(dataset.classes) == 2:
        auc = roc_auc(truth == 1, predictions_from(encoder, outputs)[:, 1])
        assert auc is not None, "the test split has rows of one class only"
        metrics["auc"] = auc
    if "oos" in dataset.classes:
        is_out = truth == dataset.classes.index("oos")
        metrics["in scope"] = float(is_correct[~is_out].mean())
        metrics["out-of-scope recall"] = float(is_correct[is_out].mean())
    return metrics


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="default: as in the recipe")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    options = parser.parse_args()
    print("| recipe | validation | test | range over seeds | wall | processor |\n| --- | --- | --- | --- | --- | --- |")
    for name in options.recipes:
        recipe = read_recipe(name)
        results = []
        for seed in options.seeds:
            result = train_and_evaluate(recipe, seed, options.threads or recipe.training.num_threads)
            results.append(result)
            times = f"{result.wall_s:.0f} s, processor {result.processor_s:.0f} s"
            print(f"  {name} seed {seed}: val {result.val_score:.4f}, test {result.test_metrics}, {times}", flush=True)
        metrics = {key: [result.test_metrics[key] for result in results] for key in results[0].test_metrics}
        means = ", ".join(f"{key} {statistics.mean(values):.4f}" for key, values in metrics.items())
        spread = ", ".join(f"{min(values):.4f}–{max(values):.4f}" for values in metrics.values())
        val = statistics.mean(result.val_score for result in results)
        wall = statistics.mean(result.wall_s for result in results)
        processor = statistics.mean(result.processor_s for result in results)
        print(f"| {name} | {val:.4f} | {means} | {spread} | {wall:.0f} s | {processor:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
