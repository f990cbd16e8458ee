"""Options of the `training` section about transfer learning."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document, is_empty
from bloomery.models.features.input_config import Count

Adaptation = Literal["channels", "vocabulary", "outputs"]

_MOVED = ("freeze", "discount")


def _as_list(value: Any) -> Any:
    """A single prefix as a list with it."""
    return [value] if isinstance(value, str) else value


def _read_freeze(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write `body` (all but the head), `embeddings`, a number of layers, or prefixes of names")
    return _as_list(value)


# The number of layers that are frozen together with the embeddings, or prefixes of names of parameters.
_Prefix = Annotated[str, Field(min_length=1)]
Freeze = Annotated[
    Count | tuple[_Prefix, ...],
    BeforeValidator(_read_freeze, json_schema_input_type=Count | _Prefix | tuple[_Prefix, ...]),
]


class Lora(Document):
    """Low-rank adapters of linear layers, which learn in place of the layers' weights and are merged afterwards."""

    rank: Count = 8
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False, description="adapters are scaled by alpha / rank")] = 16.0
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    targets: Annotated[
        Literal["auto"] | tuple[Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(lambda value: value if value == "auto" else _as_list(value)),
        Field(description="names of linear layers, or ends of names; auto: all before the head"),
    ] = "auto"

    @model_validator(mode="after")
    def _names_targets(self) -> Self:
        if not self.targets:
            raise ValueError("`targets` is empty; name layers, or write `targets: auto`")
        return self


class StartFrom(Document):
    """Initial weights: a registered version (`NAME@champion`, `NAME:3`) or a folder with safetensors files.

    Without `mapping`, weights of equal name and shape are loaded. A rule maps names: from a prefix to a prefix, or from
    a regular expression, which begins with `^`, to a name with its groups (`\\1`). The first rule that matches counts.
    """

    network: Annotated[
        str, Field(min_length=1, description="NAME@champion, NAME:3 or a folder, relative to the recipe")
    ]
    mapping: Annotated[
        dict[str, str],
        Field(
            default_factory=dict,
            exclude_if=is_empty,
            description="names of the source's weights to names of this network's: prefix to prefix, or ^regex",
        ),
    ]
    drop: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(_as_list),
        Field(exclude_if=is_empty, description="prefixes of the source's weights that are not loaded"),
    ] = ()
    adapt: Annotated[
        tuple[Adaptation, ...],
        BeforeValidator(_as_list),
        Field(
            exclude_if=is_empty,
            description="channels: the mean over the source's channels; vocabulary, outputs: the rows of equal tokens, "
            "of equal classes",
        ),
    ] = ()

    @model_validator(mode="before")
    @classmethod
    def _has_no_moved_option(cls, values: Any) -> Any:
        for name in _MOVED if isinstance(values, Mapping) else ():
            if name in values:
                raise ValueError(
                    f"`{name}` is an option of every training, not of `start_from`: write `training: {{{name}: …}}`, "
                    "beside `start_from`"
                )
        return values

    @model_validator(mode="after")
    def _has_valid_expressions(self) -> Self:
        for rule, target in self.mapping.items():
            if not rule.startswith("^"):
                continue
            try:
                num_groups = re.compile(rule).groups
            except re.error as failure:
                raise ValueError(f"`mapping`: {rule!r} is no regular expression: {failure}") from failure
            if max(map(int, re.findall(r"\\(\d+)", target)), default=0) > num_groups:
                raise ValueError(f"`mapping`: {target!r} names a group that {rule!r} does not have")
        return self

    @property
    def is_folder(self) -> bool:
        """Whether `network` names a folder: names of versions contain no slash."""
        return "/" in self.network or self.network in (".", "..")

    def absolute(self, folder: Path) -> Self:
        """Resolves a relative path against `folder`, if `network` names a folder."""
        path = folder / Path(self.network).expanduser()
        if not self.is_folder and not any(path.glob("*.safetensors")):
            return self
        return self.model_copy(update={"network": str(path.resolve())})
