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
COLUMNS_FROZEN = ("branches.0", "join.heads.0")  # the network of the first part, in a sum
_TABLE_RATE, _TEXT_RATE, _LAST_RATE = 0.001, 0.0003, 0.0001  # of the columns, of the texts, and of all together


def draft_mixed_network(
    inputs: Sequence[PlannedInput], parts: Sequence[str], num_rows: int, batch_size: int
) -> tuple[CommentedMap, CommentedMap, CommentedMap]:
    """Returns the sections model, training and compression for `num_rows` training rows.

    Args:
        parts: the names of the network's parts, in order; flat inputs together are one, the first.
    """
    epochs = min(max(_affordable_epochs([planned.options for planned in inputs], num_rows), _MIN_EPOCHS), _MAX_EPOCHS)
    if num_rows < _FEW_ROWS:
        batch_size = min(batch_size, _SMALL_BATCH)
    if has_only_texts_beside_columns(inputs, parts):
        texts = [planned.options for planned in inputs if planned.options["kind"] == "text"]
        model, training = _draft_texts_beside_columns(parts, texts, epochs, batch_size)
    else:
        model, training = CommentedMap(kind="fused"), CommentedMap(epochs=epochs, batch_size=batch_size, seed=0)
        add_comment(
            model,
            "kind",
            "Columns, texts, images, recordings and arrays each have a network, and gates weight what they find in a "
            "row.",
            2,
        )
    candidates = [spec.model_dump(exclude_defaults=True) for spec in default_candidates("fused")]
    fine_tuning = {"epochs": max(epochs // 3, 2), "batch_size": batch_size, "learning_rate": 0.001}
    compression = CommentedMap(
        candidates=CommentedSeq(map(inline, candidates)),
        fine_tune=inline(fine_tuning),
    )
    return model, training, compression


def has_only_texts_beside_columns(inputs: Sequence[PlannedInput], parts: Sequence[str]) -> bool:
    """Whether the first part is that of flat inputs, and all others are texts."""
    shaped = [planned.options["kind"] for planned in inputs if "column" in planned.options]
    return len(parts) > len(shaped) and set(shaped) == {"text"}


def columns_stage(num_parts: int) -> dict[str, Any]:
    """Returns the stage in which the first part of a sum learns alone."""
    numbers = range(1, num_parts)
    frozen = [*(f"branches.{number}" for number in numbers), *(f"join.heads.{number}" for number in numbers)]
    return {
        "epochs": _MAX_EPOCHS,
        "patience": 6,
        "learning_rate": _TABLE_RATE,
        "schedule": "constant",
        "freeze": frozen,
    }


def _draft_texts_beside_columns(
    parts: Sequence[str], texts: Sequence[dict[str, Any]], epochs: int, batch_size: int
) -> tuple[CommentedMap, CommentedMap]:
    """Returns the sections model and training: columns learn first, then texts what the columns leave unexplained.

    A stage in which the validation loss does not fall changes nothing, so a text of no use does no harm.
    """
    branches: dict[str, dict[str, Any]] = {parts[0]: {"kind": "mlp"}}
    for part, options in zip(parts[1:], texts, strict=True):
        has_words = options.get("tokenizer") == "words"
        branches[part] = {"kind": "token_bag"} if has_words else {"kind": "transformer", "convolution": 3}
    model = CommentedMap(
        kind="fused",
        branches=CommentedMap((name, inline(dict(branch))) for name, branch in branches.items()),
        join="sum",
    )
    add_comment(model, "kind", "The columns and each text have a network, whose outputs are added.", 2)
    constant = {"schedule": "constant"}
    stages = [
        columns_stage(len(parts)),
        {"epochs": epochs, "patience": 4, "learning_rate": _TEXT_RATE, **constant, "freeze": list(COLUMNS_FROZEN)},
        {"epochs": max(epochs // 3, 1), "patience": 2, "learning_rate": _LAST_RATE, **constant},
    ]
    training = CommentedMap(
        best_by="loss",
        batch_size=batch_size,
        seed=0,
        stages=CommentedSeq(map(inline, stages)),
    )
    add_comment(
        training,
        "stages",
        "First the network of the columns learns, then those of the texts, then all. Each stage starts from the best "
        "weights so far, which stay if no epoch has a lower validation loss.",
        2,
    )
    return model, training


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
