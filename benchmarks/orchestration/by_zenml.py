"""The eight stages as ZenML steps on its default stack: `python by_zenml.py [--no-cache]`.

A pickling materializer stores what a step returns. The cache, on by default, skips unchanged steps.
"""

from __future__ import annotations

import sys
from typing import Any

import steps
from zenml import pipeline, step
from zenml.materializers.cloudpickle_materializer import CloudpickleMaterializer

pickled_step = step(output_materializers=CloudpickleMaterializer)


@pickled_step
def ingest() -> Any:
    return steps.ingest()


@pickled_step
def validate(raw_rows: Any) -> Any:
    return steps.validate(raw_rows)


@pickled_step
def prepare(valid_rows: Any) -> Any:
    return steps.prepare(valid_rows)


@pickled_step
def train(dataset: Any) -> Any:
    return steps.train(dataset)


@pickled_step
def compress(trained: Any) -> Any:
    return steps.compress(trained)


@pickled_step
def choose(candidates: Any) -> Any:
    return steps.choose(candidates)


@pickled_step
def package(choice: Any) -> Any:
    return steps.package(choice)


@pickled_step
def promote(bento: Any) -> Any:
    return steps.promote(bento)


@pipeline
def digits() -> None:
    promote(package(choose(compress(train(prepare(validate(ingest())))))))


if __name__ == "__main__":
    digits.with_options(enable_cache="--no-cache" not in sys.argv)()
