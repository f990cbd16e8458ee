"""What each recipe reaches on its official test part, over several seeds.

    BLOOMERY_DATA=… .venv/bin/python benchmarks/training/recipes.py [--seeds 0 1 2] [--threads 1] [--recipes …]

Prints a line for each seed and a row of a table for each recipe. Networks are judged in PyTorch, before compression;
the test part is read once for each, after training has ended. Times are those of the stage `train`, with its pictures
and explanations. A training that is found in the state folder has no time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

from bloomery.flows.pipeline import PLAIN_STAGES
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.infrastructure.settings import settings
from bloomery.tasks.ingest.stage import locate_source

RECIPES = ("pendigits", "adult", "spoken-digits", "beijing-pm25", "mnist", "clinc150", "fashion-mnist")


class Reached(NamedTuple):
    seed: int
    val_score: float
    figures: dict[str, float]  # on the test part
    wall_s: float
    processor_s: float


def reach(recipe: Recipe, seed: int, num_threads: int) -> Reached:
    """Train with `seed` and judge the network on the test part. A kept training is found."""
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    training = recipe.training.model_copy(update={"seed": seed, "num_threads": num_threads})
    wall, processor = time.perf_counter(), time.process_time()
    trained = PLAIN_STAGES.train(dataset, recipe.model, training, None)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    return Reached(seed, trained.val_score, on_test(trained), wall, processor)


def on_test(trained) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """The figures of the test part: for classes also in and out of scope, where rows say so."""
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
    right = outputs.argmax(1) == truth
    figures = {"accuracy": float(right.mean())}
    if len(dataset.classes) == 2:
        figures["auc"] = roc_auc(truth == 1, predictions_from(encoder, outputs)[:, 1])
    if "oos" in dataset.classes:
        is_out = truth == dataset.classes.index("oos")
        figures |= {"in scope": float(right[~is_out].mean()), "out-of-scope recall": float(right[is_out].mean())}
    return figures


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="left out, as many as the recipe says")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    stated = parser.parse_args()
    print("| recipe | validation | test | spread | wall | processor |\n| --- | --- | --- | --- | --- | --- |")
    for name in stated.recipes:
        recipe = read_recipe(name)
        all_reached = []
        for seed in stated.seeds:
            one = reach(recipe, seed, stated.threads or recipe.training.num_threads)
            all_reached.append(one)
            told = f"val {one.val_score:.4f}, test {one.figures}, {one.wall_s:.0f} s, processor {one.processor_s:.0f} s"
            print(f"  {name} seed {seed}: {told}", flush=True)
        figures = {key: [one.figures[key] for one in all_reached] for key in all_reached[0].figures}
        means = ", ".join(f"{key} {statistics.mean(values):.4f}" for key, values in figures.items())
        spread = ", ".join(f"{min(values):.4f}–{max(values):.4f}" for values in figures.values())
        val = statistics.mean(one.val_score for one in all_reached)
        wall = statistics.mean(one.wall_s for one in all_reached)
        processor = statistics.mean(one.processor_s for one in all_reached)
        print(f"| {name} | {val:.4f} | {means} | {spread} | {wall:.0f} s | {processor:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
