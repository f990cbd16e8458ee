"""The eight stages as ZenML steps on its default stack: `python by_zenml.py [--no-cache]`.

A pickling materializer stores what a step returns. The cache, on by default, skips unchanged steps.
"""

from __future__ import annotations

import sys
from typing import Any

import steps
from zenml import pipeline, step
from zenml.materializers.cloudpickle_materializer import CloudpickleMaterializer

kept = step(output_materializers=CloudpickleMaterializer)


@kept
def ingest() -> Any:
    return steps.ingest()


@kept
def validate(rows: Any) -> Any:
    return steps.validate(rows)


@kept
def prepare(checked: Any) -> Any:
    return steps.prepare(checked)


@kept
def train(dataset: Any) -> Any:
    return steps.train(dataset)


@kept
def compress(trained: Any) -> Any:
    return steps.compress(trained)


@kept
def choose(options: Any) -> Any:
    return steps.choose(options)


@kept
def package(chosen: Any) -> Any:
    return steps.package(chosen)


@kept
def promote(bento: Any) -> Any:
    return steps.promote(bento)


@pipeline
def digits() -> None:
    promote(package(choose(compress(train(prepare(validate(ingest())))))))


if __name__ == "__main__":
    digits.with_options(enable_cache="--no-cache" not in sys.argv)()
