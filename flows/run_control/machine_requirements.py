"""What a recipe requires of the machine, checked before anything is computed."""

from __future__ import annotations

from typing import Any

from bloomery.flows.recipe.recipe import Recipe
from bloomery.models.inference.serving_device import require_device
from bloomery.models.networks.transformers_package import require_transformers

_TRANSFORMERS_KINDS = ("pretrained", "huggingface")  # of networks that `transformers` builds


def check_machine_requirements(recipe: Recipe) -> None:
    """Checks optional requirements of this recipe only; `bloomery doctor` checks what every run needs.

    Raises:
        EngineMissing: a later stage would fail because a program, a package, a counter or a GPU is missing.
    """
    from bloomery.tasks.infrastructure.settings import settings

    networks = (recipe.model, recipe.compression)  # which may have students
    if any(_names_kind(part.model_dump(mode="json"), _TRANSFORMERS_KINDS) for part in networks):
        require_transformers(" or ".join(_TRANSFORMERS_KINDS))
    require_device(recipe.compression.serving_device)
    if "litert" in recipe.compression.extra_formats:
        from bloomery.models.export.litert_exporter import require_litert

        require_litert(settings().litert_python)
    if recipe.budget.objective.energy:
        from bloomery.models.profiling.rapl import open_energy_counter

        open_energy_counter()


def _names_kind(document: Any, kinds: tuple[str, ...]) -> bool:
    """Whether a network of one of `kinds` is in `document`, also as a branch or a student."""
    if isinstance(document, dict):
        return document.get("kind") in kinds or any(_names_kind(value, kinds) for value in document.values())
    return isinstance(document, list) and any(_names_kind(value, kinds) for value in document)
