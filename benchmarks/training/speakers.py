"""How well spoken digits are told of a speaker who was never heard: each of the six is left out in turn.

    BLOOMERY_DATA=… python benchmarks/training/speakers.py [--epochs 30] [--threads 1]

The recipe is spoken-digits.yaml, with other parts: all recordings of one speaker are the test part, and validation is a
share of the other five speakers'. A kept training is found again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from recipes import on_test

from bloomery.data_contracts.recipe_sections.data_source import SourceFile
from bloomery.flows.pipeline import PLAIN_STAGES
from bloomery.flows.recipe.recipe import Recipe, read_recipe
from bloomery.tasks.ingest.stage import locate_source

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def without(recipe: Recipe, speaker: str) -> Recipe:
    source = recipe.data.source_files[0].source
    files = {"test": f"_{speaker}_", "train": rf"\d_(?!{speaker}_)[a-z]+_"}
    origins = tuple(SourceFile(source=source, files=pattern, part=part) for part, pattern in files.items())
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": origins})})


def accuracy_for(recipe: Recipe, epochs: int, threads: int) -> float:
    rows = PLAIN_STAGES.ingest(locate_source(recipe.data, recipe.contract.personal_columns))
    dataset = PLAIN_STAGES.prepare(
        PLAIN_STAGES.validate(rows, recipe.contract), recipe.features, recipe.engine_settings
    )
    training = recipe.training.model_copy(update={"epochs": epochs, "num_threads": threads, "explain": None})
    return on_test(PLAIN_STAGES.train(dataset, recipe.model, training, None))["accuracy"]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--epochs", type=int, default=30)
    asked.add_argument("--threads", type=int, default=1)
    stated = asked.parse_args()
    recipe = read_recipe("spoken-digits")
    print("| speaker left out | accuracy on all of the speaker's 500 recordings |\n| --- | ---: |")
    reached = []
    for speaker in SPEAKERS:
        reached.append(accuracy_for(without(recipe, speaker), stated.epochs, stated.threads))
        print(f"| {speaker} | {reached[-1]:.3f} |", flush=True)
    print(f"| mean | {statistics.mean(reached):.3f} |")


if __name__ == "__main__":
    main()
