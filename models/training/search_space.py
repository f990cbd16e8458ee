"""The search space of a hyperparameter search, and the networks that suit each layout."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.scores import Score
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.config import (
    BoostedTrees,
    Cnn,
    FtTransformer,
    Fused,
    Gpt,
    LeNet,
    Mlp,
    Model,
    ResNet,
    Rnn,
    TabM,
    TabularEnsemble,
    Transformer,
)
from bloomery.models.training.config import Range, Training

SearchSpace = Mapping[str, Range | tuple[Any, ...]]
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)
_TRAINING_SPACE: SearchSpace = {
    "training.learning_rate": Range(low=3e-4, high=1e-2, log=True),
    "training.weight_decay": Range(low=1e-4, high=1e-1, log=True),
    "training.batch_size": (32, 64, 128),
}
_MODEL_SPACES: Mapping[str, SearchSpace] = {
    "cnn": {
        "model.channels": ((16, 32), (32, 64), (32, 64, 128)),
        "model.hidden": (64, 128, 256),
        "model.dropout": (0.0, 0.2, 0.4),
    },
    "lenet": {},
    "resnet": {"model.width": (16, 32, 64), "model.dropout": (0.0, 0.2)},
    "mlp": {
        "model.hidden": ((128,), (128, 64), (256, 128), (512, 256)),
        "model.dropout": (0.0, 0.1, 0.3),
        "model.norm": ("batch", "none"),
        "model.periodic": (None, {"spread": 1}, {"spread": 8}),
    },
    "ft_transformer": {"model.num_layers": (1, 2, 3), "model.width": (32, 64), "model.dropout": (0.0, 0.1, 0.2)},
    "boosted_trees": {
        "model.learning_rate": Range(low=0.02, high=0.2, log=True),
        "model.max_leaves": Range(low=4, high=64, log=True),
        "model.min_leaf_rows": (None, 2, 5, 20, 50),
        "model.column_share": (0.3, 0.5, 0.7, 1.0),
        "model.l2": (0.0, 1.0, 10.0),
    },
    "tabm": {
        "model.width": (64, 128, 256),
        "model.num_layers": (1, 2, 3),
        "model.dropout": (0.0, 0.1, 0.3),
        "model.bins": (8, 32, 64),
    },
    "rnn": {
        "model.hidden": (64, 128, 256),
        "model.num_layers": (1, 2),
        "model.bidirectional": (False, True),
        "model.dropout": (0.0, 0.2, 0.4),
    },
    "transformer": {
        "model.width": (64, 128, 256),
        "model.num_layers": (1, 2, 4),
        "model.pooling": ("mean", "max"),
        "model.dropout": (0.1, 0.2, 0.4),
    },
    "fused": {
        "model.width": (64, 128, 256),
        "model.join": ("gate", "concat", "attention"),
        "model.dropout": (0.0, 0.1, 0.3),
        "model.modality_dropout": (0.0, 0.1, 0.2),
    },
    "gpt": {"model.width": (64, 128, 256), "model.num_layers": (1, 2, 4), "model.dropout": (0.0, 0.1, 0.2)},
}

# Options that do not change the trained network: its source, reports, and the machine.
_NOT_SEARCHED = frozenset(
    {
        *("model.kind", "model.code", "model.packages", "model.sha256", "model.function", "model.checkpoint"),
        *("model.edges", "model.network.edges"),
        *("training.search", "training.start_from.network", "training.checkpoints", "training.explain"),
        *("training.slices", "training.device", "training.devices", "training.nodes", "training.strategy"),
    }
)
_AUTO_MODELS: tuple[Model, ...] = (
    Mlp(kind="mlp"),
    FtTransformer(kind="ft_transformer"),
    BoostedTrees(kind="boosted_trees"),
    TabM(kind="tabm"),
    TabularEnsemble(kind="tabular_ensemble"),
    Transformer(kind="transformer"),
    Rnn(kind="rnn"),
    Gpt(kind="gpt"),
    Cnn(kind="cnn"),
    LeNet(kind="lenet"),
    ResNet(kind="resnet"),
    Fused(kind="fused"),
)


def default_networks(layout: Layout, score: Score | None = None) -> tuple[Model, ...]:
    """The networks that `model: auto` tries on rows of this layout, the most promising first.

    Trees predict means, so they are left out where the score is that of a quantile.
    """
    match layout.kind:
        case "flat":
            candidates: tuple[Model, ...] = (
                BoostedTrees(kind="boosted_trees"),
                TabM(kind="tabm"),
                TabularEnsemble(kind="tabular_ensemble", linear=True),
                Mlp(kind="mlp"),
                FtTransformer(kind="ft_transformer"),
            )
            if score is None or score.quantile is None:
                return candidates
            return tuple(model for model in candidates if not isinstance(model, BoostedTrees | TabularEnsemble))
        case "tokens":
            return Transformer(kind="transformer"), Rnn(kind="rnn", cell="gru", pooling="max"), Gpt(kind="gpt")
        case "sequence":
            recurrent = (Rnn(kind="rnn", cell="lstm"), Rnn(kind="rnn", cell="gru"))
            return *recurrent, Transformer(kind="transformer")
        case "mixed":
            return Fused(kind="fused"), Fused(kind="fused", join="attention"), Fused(kind="fused", join="concat")
    height, width = layout.shape[1:]
    networks: list[Model] = [Cnn(kind="cnn"), Cnn(kind="cnn", channels=(32, 64, 128), hidden=256)]
    if min(height, width) >= 16:
        networks += [LeNet(kind="lenet"), ResNet(kind="resnet", width=16)]
    return tuple(networks)


def search_space(model: Model, configured: SearchSpace) -> SearchSpace:
    """The search space: as configured in the recipe, or the default one for this kind of network.

    A choice may be a complete block such as `model.periodic`, or None if the block is optional. Configured paths that
    this kind of network does not have are left out, since with `model: auto` each kind has its own options.
    """
    if not configured:
        # Boosted trees have options of their own instead of those of gradient descent.
        training_space = {} if isinstance(model, BoostedTrees) else _TRAINING_SPACE
        return {**training_space, **_MODEL_SPACES.get(model.kind, {})}
    return {
        path: choices
        for path, choices in configured.items()
        if not path.startswith("model.") or _find_invalid_value(model, Training(epochs=1), path, choices) is None
    }


def apply_values(model: Model, training: Training, values: Mapping[str, Any]) -> tuple[Model, Training]:
    """Sets the values at their paths, and returns the changed sections.

    Raises:
        RecipeInvalid: a path does not exist, or a value is not valid there.
    """
    document = {"model": _dump_all(model), "training": _dump_all(training)}
    paths = sorted(_paths(document))
    for path, value in values.items():
        if path not in paths:
            raise _unknown_path(path, paths)
        *parents, last = path.split(".")
        section: dict[str, Any] = document
        for step in parents:
            section = section[step]
        section[last] = value
    try:
        return _MODEL.validate_python(document["model"]), Training.model_validate(document["training"])
    except ValidationError as failure:
        first = failure.errors()[0]
        raise RecipeInvalid(
            f"{', '.join(values)}: {_lower_first(first['msg'])}, found {first.get('input')!r}",
            required="values that are valid in the recipe",
            where="the recipe's training.search.space",
            remedy="correct the range or the choices",
        ) from failure


def _dump_all(section: Document) -> dict[str, Any]:
    """The options of a section, also those that a recipe's digest has only if they are set."""
    values = section.model_dump()
    return {name: values.get(name, getattr(section, name)) for name in type(section).model_fields}


def require_valid_space(model: Model, training: Training) -> None:
    """Raises RecipeInvalid if the space has a path that does not exist, or a value that is not valid there.

    With `model: auto`, each path and its values must be valid for at least one of the networks that may be tried.
    """
    if training.search is None:
        return
    models = _AUTO_MODELS if model.kind == "auto" else (model,)
    for path, choices in training.search.space.items():
        nested = next((inner for inner in training.search.space if inner.startswith(f"{path}.")), None)
        if nested is not None:
            raise RecipeInvalid(
                f"{path} is searched as a complete block, and also {nested} inside it",
                required="only one of them",
                where="the recipe's training.search.space",
                remedy=f"remove {nested}, and list its values in the choices of {path}",
            )
        if path == "training.epochs" and training.search.epochs is not None:
            raise RecipeInvalid(
                "training.epochs is searched, but training.search.epochs fixes the epochs of a trial",
                required="only one of them",
                where="the recipe's training.search",
                remedy="remove `epochs`, or remove training.epochs from `space`",
            )
        refusals = [_find_invalid_value(candidate, training, path, choices) for candidate in models]
        errors = [refusal for refusal in refusals if refusal is not None]
        if len(errors) == len(models):
            # An invalid value is more informative than a path that only other networks have.
            raise next(
                (error for error in errors if path in error.found and "no searchable option" not in error.found),
                errors[0],
            )


def _find_invalid_value(
    model: Model, training: Training, path: str, choices: Range | tuple[Any, ...]
) -> RecipeInvalid | None:
    """The error of the first invalid value at `path`, or None."""
    try:
        for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            apply_values(model, training, {path: value})
    except RecipeInvalid as refusal:
        return refusal
    return None


def _unknown_path(path: str, paths: Sequence[str]) -> RecipeInvalid:
    close = difflib.get_close_matches(path, paths, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ""
    end = path.rpartition(".")[0] or "model"
    suggestions = [candidate for candidate in paths if candidate.startswith(f"{end.split('.')[0]}.")] or list(paths)
    remedy = "correct the path; it begins with `model.` or `training.`"
    if path == "model.kind":
        remedy = "set `model: auto`, which tries the kinds that suit the rows"
    return RecipeInvalid(
        f"the recipe has no searchable option {path!r}{suggestion}",
        required=f"one of {', '.join(suggestions)}",
        where="the recipe's training.search.space",
        remedy=remedy,
    )


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]


def encode_choice(value: Any) -> str:
    """Encodes a value as JSON, since the search stores only text and numbers."""
    return json.dumps(value)


def _paths(document: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in document.items():
        path = f"{before}{name}"
        if path in _NOT_SEARCHED:
            continue
        if isinstance(value, Mapping):
            yield from _paths(value, f"{path}.")
        if before:
            yield path
