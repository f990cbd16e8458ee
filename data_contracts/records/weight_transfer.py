"""What a training took over from the weights that it started from."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from bloomery.data_contracts.documents.documents import Document, is_unset


class WeightSource(Document):
    """The files that state the tokens and classes of initial weights, and their digest."""

    uri: str  # an encoder.json, or a folder with tokenizer.json or config.json
    digest: str


class WeightTransfer(Document):
    """Numbers of weights by what became of them; `adapted` weights have another shape than their source."""

    num_loaded: int
    num_mapped: int  # of the loaded ones, under another name
    adapted: tuple[str, ...] = ()
    initialised: tuple[str, ...] = ()  # new in this network
    num_unused: int = 0  # of the source

    def __str__(self) -> str:
        parts = [f"{self.num_loaded} weights loaded"]
        if self.num_mapped:
            parts.append(f"{self.num_mapped} of them under other names")
        if self.adapted:
            parts.append(f"{len(self.adapted)} adapted ({_shorten(self.adapted)})")
        parts.append(f"{len(self.initialised)} new" + (f" ({_shorten(self.initialised)})" if self.initialised else ""))
        if self.num_unused:
            parts.append(f"{self.num_unused} of the source unused")
        return ", ".join(parts)


def _shorten(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


OptionalSource: TypeAlias = Annotated[WeightSource | None, Field(exclude_if=is_unset)]
OptionalTransfer: TypeAlias = Annotated[WeightTransfer | None, Field(exclude_if=is_unset)]
