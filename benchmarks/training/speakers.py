"""Measures the accuracy on spoken digits of an unseen speaker: each of the six speakers is left out in turn.

    BLOOMERY_DATA=… python benchmarks/training/speakers.py [--epochs 30] [--threads 1]

It uses the recipe spoken-digits.yaml with other splits: all recordings of one speaker are the test split, and the
validation split is a share of the recordings of the other five. A finished training is reused.
"""

from __future__ import annotations

import argparse
import statistics

from recipes import evaluate_on_test, prepare_rows

from bloomery.data_contracts.recipe_sections.data_source import SourceFile
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.flows.stages import PLAIN_STAGES

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def leave_out_speaker(recipe: Recipe, speaker: str) -> Recipe:
    source = recipe.data.source_files[0].source
    source_files = (
        SourceFile(source=source, files=f"_{speaker}_", part="test"),
        SourceFile(source=source, files=rf"\d_(?!{speaker}_)[a-z]+_", part="train"),
    )
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": source_files})})


def measure_accuracy(recipe: Recipe, epochs: int, threads: int) -> float:
    dataset = prepare_rows(recipe)
    training = recipe.training.model_copy(update={"epochs": epochs, "num_threads": threads, "explain": None})
    return evaluate_on_test(PLAIN_STAGES.train(dataset, recipe.model, training, None, recipe.engine_settings))[
        "accuracy"
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    recipe = read_recipe("spoken-digits")
    print("| speaker left out | accuracy on all of the speaker's 500 recordings |\n| --- | ---: |")
    accuracies = []
    for speaker in SPEAKERS:
        accuracies.append(measure_accuracy(leave_out_speaker(recipe, speaker), options.epochs, options.threads))
        print(f"| {speaker} | {accuracies[-1]:.3f} |", flush=True)
    print(f"| mean | {statistics.mean(accuracies):.3f} |")


if __name__ == "__main__":
    main()
