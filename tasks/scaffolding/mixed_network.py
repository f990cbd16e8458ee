"""Drafts the network of inputs of different kinds: a branch for each part, with its default network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bloomery.models.compression.default_candidates import default_candidates
from bloomery.tasks.scaffolding.planning.input_plans import PlannedInput
from bloomery.tasks.scaffolding.yaml_writer import add_comment, inline

_TOKENS_SEEN = 8_000_000  # in all epochs together: a few minutes on two cores
_PIXELS_SEEN = 100_000_000
_FRAMES_PIXELS = 40 * 60  # of a recording's spectrogram
_MIN_EPOCHS, _MAX_EPOCHS = 3, 30
_FEW_ROWS, _SMALL_BATCH = 10_000, 32  # few rows need small batches: otherwise there are few steps


def draft_mixed_network(
    inputs: Sequence[PlannedInput], num_rows: int, batch_size: int
) -> tuple[CommentedMap, CommentedMap, CommentedMap]:
    """Returns the sections model, training and compression for `num_rows` training rows."""
    model = CommentedMap(kind="fused")
    add_comment(
        model,
        "kind",
        "Columns, texts, images, recordings and arrays each have a network, and gates weight what they find in a row.",
        2,
    )
    epochs = min(max(_affordable_epochs([planned.options for planned in inputs], num_rows), _MIN_EPOCHS), _MAX_EPOCHS)
    if num_rows < _FEW_ROWS:
        batch_size = min(batch_size, _SMALL_BATCH)
    training = CommentedMap(epochs=epochs, batch_size=batch_size, seed=0)
    candidates = [spec.model_dump(exclude_defaults=True) for spec in default_candidates("fused")]
    fine_tuning = {"epochs": max(epochs // 3, 2), "batch_size": batch_size, "learning_rate": 0.001}
    compression = CommentedMap(
        candidates=CommentedSeq(map(inline, candidates)),
        fine_tune=inline(fine_tuning),
    )
    return model, training, compression


def _affordable_epochs(inputs: Sequence[dict[str, Any]], num_rows: int) -> int:
    """Returns how many epochs take a few minutes: each kind of input has its own cost."""
    cost = 0.0
    for options in inputs:
        if options["kind"] in ("text", "sequence"):
            cost += options["length"] / _TOKENS_SEEN
        elif options["kind"] == "image":
            cost += math.prod(options.get("resize", options["shape"][1:])) / _PIXELS_SEEN
        elif options["kind"] == "audio":
            cost += _FRAMES_PIXELS / _PIXELS_SEEN
    return math.floor(1 / (cost * num_rows)) if cost else _MAX_EPOCHS
