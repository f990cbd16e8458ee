"""Overrides: values of a recipe that a run replaces."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from bloomery.data_contracts.documents.documents import Document
from bloomery.data_contracts.errors import RecipeInvalid

DocumentT = TypeVar("DocumentT", bound=Document)


def apply_overrides(document: DocumentT, overrides: Mapping[str, Any], path: Path) -> DocumentT:
    """Returns the document at `path` with `overrides` merged into it.

    Mappings are merged, except where `kind` changes; every other value is replaced.

    Raises:
        RecipeInvalid: the result is not a valid recipe.
    """
    if not overrides:
        return document
    merged = _merge(document.model_dump(mode="json", by_alias=True, exclude_unset=True), overrides)
    try:
        return type(document).model_validate(merged)
    except ValidationError as failure:
        problems = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in failure.errors())
        raise RecipeInvalid(
            f"{path.name} with the overrides of this run: {problems}",
            required="values that are valid in a recipe file",
            where=f"the parameters of the run: {', '.join(overrides)}",
            remedy="correct them, or leave them out",
        ) from failure


def _merge(document: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(document)
    for key, value in overrides.items():
        current: Any = merged.get(key)
        are_mappings = isinstance(current, Mapping) and isinstance(value, Mapping)
        if are_mappings and value.get("kind", current.get("kind")) == current.get("kind"):
            merged[key] = _merge(current, value)
        else:
            merged[key] = value
    return merged
