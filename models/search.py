"""What a search may change in a recipe, and which networks suit which rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from data_contracts.errors import RecipeInvalid
from data_contracts.layouts import Layout
from models.networks.config import Cnn, FtTransformer, Gpt, LeNet, Mlp, Model, ResNet, Rnn, Transformer
from models.training.config import Range, Training

Space = Mapping[str, Range | tuple[Any, ...]]
_MODEL: TypeAdapter[Model] = TypeAdapter(Model)
_OF_TRAINING: Space = {
    "training.learning_rate": Range(low=3e-4, high=1e-2, log=True),
    "training.weight_decay": Range(low=1e-4, high=1e-1, log=True),
    "training.batch_size": (32, 64, 128),
}
_OF_KIND: Mapping[str, Space] = {
    "cnn": {
        "model.channels": ((16, 32), (32, 64), (32, 64, 128)),
        "model.hidden": (64, 128, 256),
        "model.dropout": (0.0, 0.2, 0.4),
    },
    "lenet": {},
    "resnet": {"model.width": (16, 32, 64), "model.dropout": (0.0, 0.2)},
    "mlp": {"model.hidden": ((128,), (128, 64), (256, 128), (512, 256)), "model.dropout": (0.0, 0.1, 0.3)},
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


def sensible(layout: Layout) -> tuple[Model, ...]:
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


def space_of(model: Model, stated: Space) -> Space:
    """What may differ: as the recipe states it, or else what usually matters for a network of this kind."""
    return stated or {**_OF_TRAINING, **_OF_KIND.get(model.kind, {})}


def changed(model: Model, training: Training, values: Mapping[str, Any]) -> tuple[Model, Training]:
    """Both with the values put at their paths.

    Raises:
        RecipeInvalid: a path leads nowhere, or a value is not possible there.
    """
    document = {"model": model.model_dump(), "training": training.model_dump()}
    known = sorted(_paths(document))
    for path, value in values.items():
        if path not in known:
            raise RecipeInvalid(
                f"training.search.space: the recipe has no {path!r}",
                required=f"one of {', '.join(one for one in known if not one.startswith('training.search'))}",
                where="the recipe's training.search.space",
                remedy="mend the path; it begins with `model.` or `training.`",
            )
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
            f"training.search.space: {'.'.join(map(str, first['loc']))}: {first['msg']}, found {first.get('input')!r}",
            required="values that the recipe could state itself",
            where="the recipe's training.search.space",
            remedy="mend the range or the choices",
        ) from failure


def require_possible(model: Model, training: Training) -> None:
    """Raises RecipeInvalid if the space has a path that leads nowhere, or a value that is not possible there."""
    if training.search is None or model.kind == "auto":
        return
    for path, choices in training.search.space.items():
        ends = (choices.low, choices.high) if isinstance(choices, Range) else choices
        for value in ends:
            changed(model, training, {path: value})


def as_choice(value: Any) -> str:
    """A value as a search keeps it, which must be text or a figure."""
    return json.dumps(value)


def _paths(document: Mapping[str, Any], before: str = "") -> Iterator[str]:
    for name, value in document.items():
        path = f"{before}{name}"
        if isinstance(value, Mapping) and path != "training.search":
            yield from _paths(value, f"{path}.")
        elif not isinstance(value, BaseModel):
            yield path
