"""Drafts the network of a table: an average of boosted trees, TabM and a linear model, sized by the training rows."""

from __future__ import annotations

from typing import NamedTuple

from ruamel.yaml.comments import CommentedMap, CommentedSeq

from bloomery.models.compression.default_candidates import default_candidates
from bloomery.tasks.scaffolding.yaml_writer import add_comment, inline

_ROWS_SEEN = 1_000_000  # training rows in all epochs together: one to three minutes on two cores
_MIN_EPOCHS, _MAX_EPOCHS = 8, 150
_MIN_BATCH_SIZE = 32  # smaller batches take as long
_ROWS_TAUGHT, _MAX_TAUGHT_EPOCHS = 500_000, 60  # of a student
_DEFAULT_CANDIDATES = default_candidates("tabular_ensemble")


class _Size(NamedTuple):
    """What is drafted for fewer training rows than `max_rows`."""

    max_rows: float
    models: int  # of trees, whose average suits few rows
    members: int
    patience: int
    num_threads: int = 1  # threads that wait for each other cost more than they save where there are few rows


_SIZES = (
    _Size(2_000, models=4, members=32, patience=16),
    _Size(10_000, models=4, members=16, patience=12),
    _Size(50_000, models=1, members=16, patience=8, num_threads=2),
    _Size(float("inf"), models=1, members=8, patience=4, num_threads=2),
)


def draft_tabular_network(
    num_rows: int, batch_size: int, *, is_skewed: bool = False, has_trees: bool = True
) -> tuple[CommentedMap, CommentedMap, CommentedMap]:
    """Returns the sections model, training and compression for `num_rows` training rows.

    Args:
        is_skewed: a class is rare, and the score is one of decisions.
        has_trees: False of sets of labels, which trees do not learn, and of ordered classes, whose order trees ignore:
            TabM learns alone.
    """
    size = next(size for size in _SIZES if num_rows < size.max_rows)
    trees = {"kind": "boosted_trees"} | ({"models": size.models} if size.models > 1 else {})
    model = CommentedMap(
        kind="tabular_ensemble",
        trees=inline(trees),
        network=inline({"kind": "tabm", "members": size.members, "width": 128}),
        linear=True,
    )
    if is_skewed:
        model["decisions"] = "score"
        add_comment(
            model,
            "decisions",
            "Rare classes get higher probabilities than their frequency, as suits the score of the validation rows.",
            2,
        )
    training = CommentedMap(
        epochs=min(max(_ROWS_SEEN // num_rows, _MIN_EPOCHS), _MAX_EPOCHS),
        patience=size.patience,
        best_by="loss",
        batch_size=max(batch_size, _MIN_BATCH_SIZE),
        schedule="constant",
        learning_rate=0.002,
        weight_decay=0.0003,
        seed=0,
        num_threads=size.num_threads,
    )
    add_comment(training, "epochs", "At most; training stops earlier, when the validation loss no longer improves.", 2)
    add_comment(
        training, "best_by", "The loss selects the epoch: the score of few validation rows changes by chance.", 2
    )
    if not has_trees:
        model = CommentedMap(kind="tabm", members=size.members, width=128)
        candidates = [{"name": "fp32"}, {"name": "int8", "quantize": "dynamic"}]
        return model, training, CommentedMap(candidates=CommentedSeq(map(inline, candidates)))
    return model, training, _draft_compression(num_rows, batch_size)


def _draft_compression(num_rows: int, batch_size: int) -> CommentedMap:
    """Returns the section compression: the default candidates of trees, and a small network that learns from them."""
    pruned = [{"name": spec.name, "prune": spec.prune.ratio} for spec in _DEFAULT_CANDIDATES if spec.prune is not None]
    student = {"name": "student", "student": {"model": {"kind": "mlp"}}}
    compression = CommentedMap(
        candidates=CommentedSeq(map(inline, [{"name": "fp32"}, *pruned, student])),
        fine_tune=inline(
            {
                "epochs": min(max(_ROWS_TAUGHT // num_rows, _MIN_EPOCHS), _MAX_TAUGHT_EPOCHS),
                "batch_size": max(batch_size, _MIN_BATCH_SIZE),
                "learning_rate": 0.003,
            }
        ),
    )
    add_comment(
        compression,
        "candidates",
        "`prune` removes this share of the trees, and of the members of TabM; the others get new weights. The student "
        "is a small network that learns from the trained one. The best that is shown to be as good ships.",
        2,
    )
    return compression
