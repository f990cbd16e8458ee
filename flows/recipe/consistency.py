"""Checks that features, network, training and contract of a recipe are consistent."""

from __future__ import annotations

from collections.abc import Iterator

from bloomery.data_contracts.odcs.columns.column import can_be_encrypted
from bloomery.data_contracts.odcs.contract import Column, Contract
from bloomery.data_contracts.records.tensor_layout import predicts_one_class
from bloomery.flows.recipe.compression_checks import check_compression
from bloomery.flows.recipe.embedding_checks import check_embedding
from bloomery.flows.recipe.feature_checks import check_column, check_series, check_words
from bloomery.flows.recipe.layer_checks import check_layers
from bloomery.flows.recipe.multilabel_checks import check_multilabel
from bloomery.flows.recipe.multioutput_checks import check_multioutput
from bloomery.flows.recipe.ordinal_checks import check_ordinal
from bloomery.flows.recipe.pretrained_checks import check_checkpoint_inputs
from bloomery.flows.recipe.privacy_checks import check_privacy
from bloomery.flows.recipe.scope_checks import check_scope_students
from bloomery.flows.recipe.tagging_checks import check_tagging
from bloomery.flows.recipe.training_checks import (
    check_boosted_trees,
    check_imported_network,
    check_network,
    check_slices,
    check_training,
)
from bloomery.models.compression.config import Compression
from bloomery.models.features.config import Features
from bloomery.models.networks.config import BoostedTrees, Imported, Model
from bloomery.models.training.config import Training

_LABEL_TYPES = {
    "classification": ("integer", "string", "boolean"),
    "regression": ("integer", "number"),
    "multilabel": ("array",),
    "embedding": ("string",),
    "ordinal": ("integer", "string"),
    "multioutput": ("integer", "number"),
    "multitask": ("integer", "string", "boolean"),
    "tagging": ("array",),
}
_LABEL_RULES = {
    "classification": "classes are integers, strings or booleans",
    "regression": "targets are numbers",
    "multilabel": "a set of labels is an array of strings or integers",
    "embedding": "the label of an embedding is a text that belongs to the input's",
    "ordinal": "classes with an order are integers or strings",
    "multioutput": "targets are numbers",
    "multitask": "classes are integers, strings or booleans",
    "tagging": "the tags of words are an array of strings or integers",
}

_ITEM_TYPES = ("integer", "string")


def find_inconsistencies(
    features: Features,
    model: Model,
    contract: Contract,
    training: Training | None = None,
    compression: Compression | None = None,
) -> Iterator[str]:
    """Yields one sentence for each problem."""
    yield from _check_features(features, contract)
    yield from check_network(features, model)
    yield from check_checkpoint_inputs(features, model)
    yield from check_multilabel(features, model, training, compression)
    yield from check_embedding(features, model, training, compression)
    yield from check_tagging(features, contract, model, training, compression)
    yield from check_multioutput(features, model, training, compression)
    yield from check_ordinal(features, contract.column(features.label), training)
    if training is not None:
        yield from check_slices(training, contract)
        if isinstance(model, Imported):
            yield from check_imported_network(training)
        elif isinstance(model, BoostedTrees):
            yield from check_boosted_trees(features, training)
        else:
            yield from check_training(features, model, training)
            yield from check_privacy(model, training, compression or Compression())
            yield from check_layers(features, model, training)
            yield from check_scope_students(training, compression or Compression())
    uses_unlabelled = training is not None and training.pretrains
    if (
        compression is not None
        and compression.distill is None
        and features.unlabelled == "teach"
        and not uses_unlabelled
    ):
        yield (
            "compression.distill: without it, and without a self-supervised stage of the training, unlabelled rows are "
            "not used; leave out `features.unlabelled`"
        )
    if compression is not None:
        yield from check_compression(features, model, compression)


def _check_features(features: Features, contract: Contract) -> Iterator[str]:
    for role, name in (("key", features.key), *(("label", name) for name in features.label_columns)):
        if contract.column(name) is None:
            yield f"features.{role}: {_no_column(contract, name)}"
    for name in sorted(contract.personal_columns):
        if not can_be_encrypted(name):
            yield (
                f"data.rename: column {name!r} is personal, and Parquet cannot encrypt a column with a comma, a colon, "
                "a semicolon or a space at the end in its name; rename it in data and contract"
            )
    yield from _check_key(contract.column(features.key), contract.table.key)
    kinds = {name: column.logical_type for name in features.label_columns if (column := contract.column(name))}
    if "number" in kinds.values() and {"string", "boolean"} & set(kinds.values()):
        listing = ", ".join(f"{name} is {kind}" for name, kind in kinds.items())
        yield (
            f"features.label: several labels are all numbers or all classes, but {listing}; predict the numbers and "
            "the classes by two recipes"
        )
        kinds = {}
    for name in kinds:
        yield from _check_label(features, contract.column(name))
    for source in features.inputs:
        for name in source.columns:
            column = contract.column(name)
            if column is None:
                yield f"features.inputs: {_no_column(contract, name)}"
            else:
                if column.personal is not None:
                    problem = f"column {column.name!r} is marked personal in the contract, so it cannot be an input"
                    yield f"features.inputs: {problem}"
                problems = check_words(column) if features.task == "tagging" else check_column(source, column)
                yield from (f"features.inputs: {problem}" for problem in problems)
    if features.series is not None:
        yield from (f"features.inputs: {problem}" for problem in check_series(features.series, contract))
        if features.split.by == "key":
            yield (
                "features.split: by key, neighbouring rows of a series would go to different splits; "
                "split by time, or by group or given"
            )
    yield from _check_split(features, contract)


def _no_column(contract: Contract, name: str) -> str:
    reason = contract.table.unread_columns.get(name)
    if reason is not None:
        return f"column {name!r} of contract {contract.name} is {reason}"
    columns = ", ".join(column.name for column in contract.columns)
    return f"contract {contract.name} has no column {name!r}; it has {columns}"


def _check_key(key: Column | None, primary_key: tuple[str, ...]) -> Iterator[str]:
    if key is None:
        return
    if not (primary_key == (key.name,) or (key.unique and key.is_required)):
        yield f"features.key: column {key.name!r} is not a primaryKey in the contract, so it may not identify rows"
    if key.personal in ("drop", "encrypt"):
        yield f"features.key: column {key.name!r} is not stored in plain form ({key.personal}); `hash` keeps it usable"


def _check_label(features: Features, label: Column | None) -> Iterator[str]:
    if label is None:
        return
    if label.personal is not None:
        yield f"features.label: column {label.name!r} is marked personal in the contract, so it cannot be learnt"
    may_be_missing = features.is_forecast or features.labels is not None
    if not label.is_required and not may_be_missing and features.unlabelled == "refuse":
        hint = "; `unlabelled: teach` uses such rows" if predicts_one_class(features.task) else ""
        yield f"features.label: column {label.name!r} is not required in the contract, so labels may be missing{hint}"
    if label.is_required and features.unlabelled == "teach":
        yield f"features.unlabelled: column {label.name!r} is required in the contract, so every row has a label"
    if label.logical_type not in _LABEL_TYPES[features.task]:
        array_hint = "; use `task: multilabel` for sets of labels, or `task: tagging` for a tag per word"
        hints = {"number": "; use `task: regression`", "array": array_hint}
        hint = hints.get(label.logical_type, "")
        if features.task in ("multilabel", "tagging"):
            hint = "; `data.lists` makes one of a text with a separator, or of several columns of 0 and 1"
        required = _LABEL_RULES[features.task]
        yield f"features.label: {required}, but column {label.name!r} is {label.logical_type}{hint}"
    elif label.logical_type == "array" and (label.items is None or label.items.logical_type not in _ITEM_TYPES):
        yield f"features.label: {_LABEL_RULES[features.task]}, but column {label.name!r} has other elements"


def _check_split(features: Features, contract: Contract) -> Iterator[str]:
    """Yields problems of the columns that the split reads."""
    split = features.split
    for name in split.columns:
        column = contract.column(name)
        if column is None:
            yield f"features.split: {_no_column(contract, name)}"
        elif column.personal in ("drop", "encrypt"):
            yield (
                f"features.split: column {name!r} is not stored in plain form ({column.personal}); "
                "`hash` keeps it usable"
            )
        elif not column.is_required:
            yield f"features.split: column {name!r} is not required in the contract, so a row might have no split"
        elif column.logical_type == "array":
            yield f"features.split: column {name!r} is an array; a split needs single values"
        elif name == split.column and split.val_from is not None:
            types = ("integer",) if isinstance(split.val_from, int) else ("date", "timestamp")
            if column.logical_type not in types:
                yield f"features.split.val_from is not a value of column {name!r}, which is {column.logical_type}"
    column = contract.column(split.column or "")
    if split.by == "given" and column is not None and column.logical_type != "string":
        yield (
            f"features.split: column {column.name!r} is {column.logical_type}; "
            "given splits are the strings train, val and test"
        )
