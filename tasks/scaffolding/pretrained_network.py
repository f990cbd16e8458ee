"""Drafts the training of networks that start from a pretrained checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bloomery.tasks.scaffolding.planning.input_plans import PlannedInput
from bloomery.tasks.scaffolding.yaml_writer import add_comment, inline

_TOKENS_SEEN = 1_500_000  # of texts in all epochs together: ten minutes or so of MiniLM on two cores
_MIN_EPOCHS, _MAX_EPOCHS = 2, 10
_HEAD_EPOCHS = 4  # of the new parts, while the checkpoint's weights stay
_RATE, _NEW_RATE = 0.00015, 0.001  # for the checkpoint's weights, and for new ones
_MAX_BATCH_SIZE = 32
_BRANCHES = {"image": "cnn", "audio": "cnn", "sequence": "rnn"}

Sections = tuple[CommentedMap, CommentedMap, CommentedMap]


def draft_pretrained_network(text: PlannedInput, reference: str, num_rows: int, batch_size: int) -> Sections:
    """Returns the sections model, training and compression for one text."""
    batch_size = min(batch_size, _MAX_BATCH_SIZE)
    model = CommentedMap(kind="pretrained", checkpoint=reference)
    training = CommentedMap(
        epochs=_affordable_epochs([text], num_rows),
        batch_size=batch_size,
        learning_rate=_RATE,
        schedule="linear",
        warmup=0.1,
        seed=0,
    )
    return model, training, _draft_compression(batch_size, {"name": "int8", "quantize": "dynamic"})


def draft_fused_network(
    inputs: Sequence[PlannedInput], parts: Sequence[str], reference: str, num_rows: int, batch_size: int
) -> Sections:
    """Returns the sections for several inputs, of which the texts are read by the checkpoint.

    Args:
        parts: the names of the network's parts, in order; flat inputs together are one.
    """
    shaped = [planned.options["kind"] for planned in inputs if "column" in planned.options]
    kinds = [*([""] if len(parts) > len(shaped) else []), *shaped]  # flat inputs come first
    branches, frozen = CommentedMap(), []
    for number, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        is_text = kind == "text"
        branch = {"kind": "pretrained", "checkpoint": reference} if is_text else {"kind": _BRANCHES.get(kind, "mlp")}
        branches[part] = inline(branch)
        frozen += [f"branches.{number}.body"] if is_text else []
    model = CommentedMap(kind="fused", branches=branches)
    batch_size = min(batch_size, _MAX_BATCH_SIZE)
    texts = [planned for planned in inputs if planned.options["kind"] == "text"]
    stages = [
        {"epochs": _HEAD_EPOCHS, "freeze": frozen, "learning_rate": _NEW_RATE},
        {"epochs": _affordable_epochs(texts, num_rows), "learning_rate": _RATE, "schedule": "linear", "warmup": 0.1},
    ]
    training = CommentedMap(batch_size=batch_size, seed=0, stages=CommentedSeq(map(inline, stages)))
    add_comment(
        training, "stages", "First the new parts learn; then all weights, at a rate that suits trained ones.", 2
    )
    return model, training, _draft_compression(batch_size, {"name": "int8", "quantize": "dynamic"})


def _affordable_epochs(texts: Sequence[PlannedInput], num_rows: int) -> int:
    num_tokens = num_rows * sum(planned.options["length"] for planned in texts)
    return min(max(_TOKENS_SEEN // num_tokens, _MIN_EPOCHS), _MAX_EPOCHS)


def _draft_compression(batch_size: int, *candidates: dict[str, Any]) -> CommentedMap:
    fine_tuning = {"epochs": _MIN_EPOCHS, "batch_size": batch_size, "learning_rate": _RATE}
    return CommentedMap(
        candidates=CommentedSeq(map(inline, [{"name": "fp32"}, *candidates])), fine_tune=inline(fine_tuning)
    )
