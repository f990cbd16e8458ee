"""Single values of a recipe that a run changes, as if its file said so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import RecipeInvalid

DocumentT = TypeVar("DocumentT", bound=Document)


def changed(stated: DocumentT, changes: Mapping[str, Any], path: Path) -> DocumentT:
    """What the file at `path` states, with `changes` in it: a document of the same form.

    Mappings are merged, but for one whose `kind` becomes another; all else is replaced.

    Raises:
        RecipeInvalid: it is no recipe any more.
    """
    if not changes:
        return stated
    document = _merged(stated.model_dump(mode="json", by_alias=True, exclude_unset=True), changes)
    try:
        return type(stated).model_validate(document)
    except ValidationError as failure:
        told = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in failure.errors())
        raise RecipeInvalid(
            f"{path.name} with what this run changes: {told}",
            required="values that the recipe could have in its file",
            where=f"the parameters of the run: {', '.join(changes)}",
            remedy="mend them, or leave them out",
        ) from failure


def _merged(document: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for key, value in changes.items():
        before: Any = merged.get(key)
        are_parts = isinstance(before, Mapping) and isinstance(value, Mapping)
        if are_parts and value.get("kind", before.get("kind")) == before.get("kind"):
            merged[key] = _merged(before, value)
        else:
            merged[key] = value
    return merged
