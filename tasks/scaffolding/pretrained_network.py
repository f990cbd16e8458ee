"""Drafts the training of networks that start from a pretrained checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bloomery.models.compression.config import CandidateSpec
from bloomery.models.compression.default_candidates import default_candidates
from bloomery.models.networks.config import Fused
from bloomery.models.networks.pretrained_config import Pretrained
from bloomery.tasks.scaffolding.mixed_network import COLUMNS_FROZEN, columns_stage, has_only_texts_beside_columns
from bloomery.tasks.scaffolding.planning.input_plans import PlannedInput
from bloomery.tasks.scaffolding.yaml_writer import add_comment, inline

_TOKENS_SEEN = 1_500_000  # in all epochs together: ten minutes or so of MiniLM on two cores
_IMAGE_TOKENS, _TOKENS_PER_S = 200, 50  # patches of an image, and frames of a recording
_MIN_EPOCHS, _MAX_EPOCHS = 2, 10
_HEAD_EPOCHS = 4  # of the new parts, while the checkpoint's weights stay
_RATE, _NEW_RATE = 0.00015, 0.001  # for the checkpoint's weights, and for new ones
_MAX_BATCH_SIZE = 32
_BRANCHES: dict[str, dict[str, Any]] = {  # by the kind of the input
    "text": {"kind": "transformer", "convolution": 3},
    "image": {"kind": "cnn"},
    "audio": {"kind": "cnn"},
    "sequence": {"kind": "rnn"},
}

Sections = tuple[CommentedMap, CommentedMap, CommentedMap]


def draft_pretrained_network(planned: PlannedInput, pretrained: Pretrained, num_rows: int, batch_size: int) -> Sections:
    """Returns the sections model, training and compression for one input that the checkpoint reads."""
    batch_size = min(batch_size, _MAX_BATCH_SIZE)
    model = CommentedMap(kind="pretrained", checkpoint=pretrained.checkpoint)
    training = CommentedMap(
        epochs=_affordable_epochs([planned], num_rows),
        batch_size=batch_size,
        learning_rate=_RATE,
        schedule="linear",
        warmup=0.1,
        seed=0,
    )
    defaults = default_candidates("pretrained", pretrained=pretrained)
    return model, training, _draft_compression(batch_size, [spec for spec in defaults if not spec.changes_network])


def draft_fused_network(
    inputs: Sequence[PlannedInput], parts: Sequence[str], pretrained: Pretrained, num_rows: int, batch_size: int
) -> Sections:
    """Returns the sections for several inputs, of which the checkpoint reads those with its own preprocessing.

    Args:
        parts: the names of the network's parts, in order; flat inputs together are one.
    """
    shaped = [planned for planned in inputs if "column" in planned.options]
    columns = [*([None] if len(parts) > len(shaped) else []), *shaped]  # flat inputs come first
    branches, frozen = CommentedMap(), []
    for number, (part, column) in enumerate(zip(parts, columns, strict=True)):
        if column is not None and _is_read(column):
            branches[part] = inline({"kind": "pretrained", "checkpoint": pretrained.checkpoint})
            frozen.append(f"branches.{number}.body")
        else:
            branches[part] = inline({"kind": "mlp"} if column is None else dict(_BRANCHES[column.options["kind"]]))
    model = CommentedMap(kind="fused", branches=branches)
    batch_size = min(batch_size, _MAX_BATCH_SIZE)
    read_inputs = [planned for planned in inputs if _is_read(planned)]
    stages = [
        {"epochs": _HEAD_EPOCHS, "freeze": frozen, "learning_rate": _NEW_RATE},
        {
            "epochs": _affordable_epochs(read_inputs, num_rows),
            "learning_rate": _RATE,
            "schedule": "linear",
            "warmup": 0.1,
        },
    ]
    order = "First the new parts learn; then all weights, at a rate that suits trained ones."
    if has_only_texts_beside_columns(inputs, parts):
        model["join"] = "sum"
        stages[0] = {**stages[0], "freeze": [*COLUMNS_FROZEN, *frozen]}
        stages.insert(0, columns_stage(len(parts)))
        order = (
            "First the network of the columns learns, then the new parts of the texts, then all weights, at a rate "
            "that suits trained ones. Weights stay if no epoch of a stage has a lower validation loss."
        )
    training = CommentedMap(best_by="loss", batch_size=batch_size, seed=0, stages=CommentedSeq(map(inline, stages)))
    add_comment(training, "stages", order, 2)
    networks = {name: pretrained if branch["kind"] == "pretrained" else branch for name, branch in branches.items()}
    network = Fused.model_validate({"kind": "fused", "branches": networks})
    return model, training, _draft_compression(batch_size, default_candidates("fused", pretrained=network))


def _is_read(planned: PlannedInput) -> bool:
    """Whether the checkpoint reads the input."""
    return "checkpoint" in (planned.options.get("tokenizer"), planned.options.get("preprocessing"))


def _affordable_epochs(inputs: Sequence[PlannedInput], num_rows: int) -> int:
    num_tokens = num_rows * sum(_count_tokens(planned.options) for planned in inputs)
    return min(max(_TOKENS_SEEN // num_tokens, _MIN_EPOCHS), _MAX_EPOCHS)


def _count_tokens(options: dict[str, Any]) -> int:
    if options["kind"] == "audio":
        return math.ceil(options["duration_s"] * _TOKENS_PER_S)
    return int(options.get("length", _IMAGE_TOKENS))


def _draft_compression(batch_size: int, specs: Sequence[CandidateSpec]) -> CommentedMap:
    fine_tuning = {"epochs": _MIN_EPOCHS, "batch_size": batch_size, "learning_rate": _RATE}
    candidates = CommentedSeq(inline(spec.model_dump(exclude_defaults=True)) for spec in specs)
    return CommentedMap(candidates=candidates, fine_tune=inline(fine_tuning))
