"""Options of the `training` section about transfer learning."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator

from bloomery.data_contracts.documents.documents import Document
from bloomery.models.features.input_config import Count

_MOVED = ("freeze", "discount")


def _as_list(value: Any) -> Any:
    """A single prefix as a list with it."""
    return [value] if isinstance(value, str) else value


# The number of layers that are frozen together with the embeddings, or prefixes of names of parameters.
Freeze = Annotated[Count | tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_list)]


class StartFrom(Document):
    """Initial weights: a registered version (`NAME@champion`, `NAME:3`) or a folder with weights.safetensors."""

    network: Annotated[
        str, Field(min_length=1, description="NAME@champion, NAME:3 or a folder, relative to the recipe")
    ]

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

    @property
    def is_folder(self) -> bool:
        """Whether `network` names a folder: names of versions contain no slash."""
        return "/" in self.network or self.network in (".", "..")

    def absolute(self, folder: Path) -> Self:
        """Resolves a relative path against `folder`, if `network` names a folder."""
        path = folder / Path(self.network).expanduser()
        if not self.is_folder and not (path / "weights.safetensors").is_file():
            return self
        return self.model_copy(update={"network": str(path.resolve())})
