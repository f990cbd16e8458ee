"""Checks that a tagging task has as many tags as words, and uses only what works for tags of words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bloomery.data_contracts.expressions.sql import parse_sql, quote_name
from bloomery.data_contracts.odcs.contract import Contract
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import Model, Rnn, Transformer
from bloomery.models.training.config import Training

TAGGING_KINDS = ("pretrained", "transformer", "rnn")


def check_tagging(
    features: Features, contract: Contract, model: Model, training: Training | None, compression: Compression | None
) -> Iterator[str]:
    """Yields options that do not work for tags of words; nothing for other tasks."""
    if features.task != "tagging":
        return
    yield from _check_lengths(features, contract)
    yield from _check_network("model", model)
    if training is not None:
        yield from _check_training(training)
    if compression is not None:
        yield from _check_compression(compression)


def _check_lengths(features: Features, contract: Contract) -> Iterator[str]:
    """Requires a rule of the contract that each word has a tag, and tags without null."""
    words, label = features.inputs[0].columns[0], features.label
    tags = contract.column(label)
    if tags is not None and tags.items is not None and not tags.items.required:
        yield f"features.label: column {label!r} may have null elements, which are no tags; set `required` of its items"
    rules = [rule for rule in contract.rules() if rule.kind == "expression" and rule.severity == "error"]
    if not any(_compares_lengths(rule.expression or "", {words, label}) for rule in rules):
        condition = f"LENGTH({quote_name(words)}) = LENGTH({quote_name(label)})"
        yield (
            f"features.label: contract {contract.name} does not say that each word has a tag; add to its `quality`: "
            f"{{type: custom, engine: bloomery, implementation: {{rule: expression, expression: '{condition}'}}}}"
        )


def _compares_lengths(expression: str, columns: set[str]) -> bool:
    """Whether a condition, or one of its parts that are joined by AND, is that the columns have equal lengths."""
    from sqlglot import exp

    def is_length(tree: Any) -> bool:
        return isinstance(tree, exp.Length) and isinstance(tree.this, exp.Column)

    lengths: list[set[str]] = []
    parts = [parse_sql(expression).unnest()]
    while parts:
        tree = parts.pop()
        if isinstance(tree, exp.And):
            parts += [tree.this.unnest(), tree.expression.unnest()]
        elif isinstance(tree, exp.EQ) and is_length(tree.this) and is_length(tree.expression):
            lengths.append({tree.this.this.name, tree.expression.this.name})
    return columns in lengths


def _check_network(place: str, model: Model) -> Iterator[str]:
    if model.kind not in TAGGING_KINDS:
        yield f"{place}: a network of kind {model.kind} has no output for each word; use {', '.join(TAGGING_KINDS)}"
        return
    if isinstance(model, Transformer) and model.wide:
        yield f"{place}.wide: it adds up the tokens of a sentence, and each word has its own tag; leave it out"
    if isinstance(model, Rnn) and model.highway:
        yield f"{place}.highway: it maps the last steps of a series, and each word has its own tag; leave it out"
    # That of a resolved checkpoint is its own, and not the recipe's.
    if "pooling" in model.model_fields_set and getattr(model, "resolved", None) is None:
        yield f"{place}.pooling: each word has its own output, so that nothing is pooled; leave it out"


def _check_training(training: Training) -> Iterator[str]:
    for name, reason in (
        ("privacy", "private training of tags is not implemented"),
        ("search", "a search for networks that tag words is not implemented; name the network and its options"),
    ):
        if getattr(training, name) is not None:
            yield f"training.{name}: {reason}; leave it out"
    if training.explain is not None and "explain" in training.model_fields_set:
        yield "training.explain: a sentence has a tag for each word, and no single output to explain; leave it out"
    if any(stage.objective != "task" for stage in training.stages):
        yield "training.stages: objectives without labels are not implemented for tags; leave out their stages"
    if any(part.augment.drop_tokens for part in training.parts):
        yield "training.augment.drop_tokens: it moves tokens away from their tags; leave it out"
    if training.strategy == "pipeline":
        yield "training.strategy: the stages of a pipeline do not learn tags; use ddp, fsdp or tensor"


def _check_compression(compression: Compression) -> Iterator[str]:
    if compression.search is not None:
        yield "compression.search: a search for networks that tag words is not implemented; name `candidates`"
    for name in compression.extra_formats:
        yield f"compression.extra_formats: a {name} file of tags is not tested against its network; leave it out"
    distillation = compression.distill
    if distillation is not None and (distillation.feature_weight or distillation.attention_weight):
        yield "compression.distill: tags are distilled by their probabilities; leave out other weights than `weight`"
    for candidate in compression.candidates or ():
        if candidate.new_network is not None:
            yield from _check_network(f"compression.candidates: the student of {candidate.name}", candidate.new_network)
