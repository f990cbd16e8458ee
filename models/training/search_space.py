"""What a search may change in a recipe, and which networks suit which rows."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from bloomery.data_contracts.errors import RecipeInvalid
from bloomery.data_contracts.records.tensor_layout import Layout
from bloomery.models.networks.config import Cnn, FtTransformer, Gpt, LeNet, Mlp, Model, ResNet, Rnn, Transformer
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
    "gpt": {"model.width": (64, 128, 256), "model.num_layers": (1, 2, 4), "model.dropout": (0.0, 0.1, 0.2)},
}

# What begins the network or only tells of it. Each device and thread is a part of the machine, and not of the network.
_NOT_SEARCHED = frozenset(
    {
        *("model.kind", "model.code", "model.packages", "model.sha256", "model.function", "model.checkpoint"),
        *("training.search", "training.start_from.network", "training.checkpoints", "training.explain"),
        *("training.slices", "training.device", "training.devices", "training.nodes", "training.strategy"),
    }
)
_AUTO_MODELS: tuple[Model, ...] = (
    Mlp(kind="mlp"),
    FtTransformer(kind="ft_transformer"),
    Transformer(kind="transformer"),
    Rnn(kind="rnn"),
    Gpt(kind="gpt"),
    Cnn(kind="cnn"),
    LeNet(kind="lenet"),
    ResNet(kind="resnet"),
)


def default_networks(layout: Layout) -> tuple[Model, ...]:
    """The networks that a search tries on rows of this layout, the likeliest first."""
    match layout.kind:
        case "flat":
            return Mlp(kind="mlp"), FtTransformer(kind="ft_transformer")
        case "tokens":
            return Transformer(kind="transformer"), Rnn(kind="rnn", cell="gru", pooling="max"), Gpt(kind="gpt")
        case "sequence":
            recurrent = (Rnn(kind="rnn", cell="lstm"), Rnn(kind="rnn", cell="gru"))
            return *recurrent, Transformer(kind="transformer")
    height, width = layout.shape[1:]
    networks: list[Model] = [Cnn(kind="cnn"), Cnn(kind="cnn", channels=(32, 64, 128), hidden=256)]
    if min(height, width) >= 16:
        networks += [LeNet(kind="lenet"), ResNet(kind="resnet", width=16)]
    return tuple(networks)


def search_space(model: Model, stated: SearchSpace) -> SearchSpace:
    """What may differ: as the recipe states it, or else what usually matters for a network of this kind.

    A choice may be a whole block, such as `model.periodic`, and `None` where it may be left out.
    Of what is stated a network has what is possible in it: with `model: auto` the kinds have options of their own.
    """
    if not stated:
        return {**_TRAINING_SPACE, **_MODEL_SPACES.get(model.kind, {})}
    return {
        path: choices
        for path, choices in stated.items()
        if not path.startswith("model.") or _find_invalid_value(model, Training(epochs=1), path, choices) is None
    }


def apply_values(model: Model, training: Training, values: Mapping[str, Any]) -> tuple[Model, Training]:
    """Both with the values put at their paths.

    Raises:
        RecipeInvalid: a path leads nowhere, or a value is not possible there.
    """
    document = {"model": model.model_dump(), "training": training.model_dump()}
    known = sorted(_paths(document))
    for path, value in values.items():
        if path not in known:
            raise _unknown_path(path, known)
        *way, last = path.split(".")
        place: dict[str, Any] = document
        for step in way:
            place = place[step]
        place[last] = value
    try:
        return _MODEL.validate_python(document["model"]), Training.model_validate(document["training"])
    except ValidationError as failure:
        first = failure.errors()[0]
        raise RecipeInvalid(
            f"{', '.join(values)}: {_lower_first(first['msg'])}, found {first.get('input')!r}",
            required="values that the recipe could state itself",
            where="the recipe's training.search.space",
            remedy="mend the range or the choices",
        ) from failure


def require_valid_space(model: Model, training: Training) -> None:
    """Raises RecipeInvalid if the space has a path that leads nowhere, or a value that is not possible there.

    With `model: auto` a path is to be that of one of the networks that may be tried, with values possible in it.
    """
    if training.search is None:
        return
    models = _AUTO_MODELS if model.kind == "auto" else (model,)
    for path, choices in training.search.space.items():
        inside = next((other for other in training.search.space if other.startswith(f"{path}.")), None)
        if inside is not None:
            raise RecipeInvalid(
                f"{path} is searched as a whole, and {inside} inside it",
                required="one of them",
                where="the recipe's training.search.space",
                remedy=f"leave out {inside}, and state its values in the choices of {path}",
            )
        if path == "training.epochs" and training.search.epochs is not None:
            raise RecipeInvalid(
                "training.epochs is searched, and training.search.epochs says how many a trial has",
                required="one of them",
                where="the recipe's training.search",
                remedy="leave out `epochs` or take it from `space`",
            )
        refusals = [_find_invalid_value(one, training, path, choices) for one in models]
        refused = [refusal for refusal in refusals if refusal is not None]
        if len(refused) == len(models):
            # A value that is wrong says more than a path that other networks have.
            raise next((one for one in refused if path in one.found and "nothing at" not in one.found), refused[0])


def _find_invalid_value(
    model: Model, training: Training, path: str, choices: Range | tuple[Any, ...]
) -> RecipeInvalid | None:
    """What is wrong with one of the values at `path`, if anything is."""
    try:
        for value in (choices.low, choices.high) if isinstance(choices, Range) else choices:
            apply_values(model, training, {path: value})
    except RecipeInvalid as refusal:
        return refusal
    return None


def _unknown_path(path: str, known: Sequence[str]) -> RecipeInvalid:
    close = difflib.get_close_matches(path, known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    end = path.rpartition(".")[0] or "model"
    near = [one for one in known if one.startswith(f"{end.split('.')[0]}.")] or list(known)
    remedy = "mend the path; it begins with `model.` or `training.`"
    if path == "model.kind":
        remedy = "say `model: auto`, which tries the kinds that suit the rows"
    return RecipeInvalid(
        f"the recipe has nothing at {path!r} that could be searched{hint}",
        required=f"one of {', '.join(near)}",
        where="the recipe's training.search.space",
        remedy=remedy,
    )


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]


def encode_choice(value: Any) -> str:
    """A value as a search keeps it, which must be text or a figure."""
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
