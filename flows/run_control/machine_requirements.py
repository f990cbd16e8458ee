"""What a recipe requires of the machine, checked before anything is computed."""

from __future__ import annotations

from bloomery.flows.recipe.recipe import Recipe
from bloomery.models.inference.serving_device import require_device


def check_machine_requirements(recipe: Recipe) -> None:
    """Checks optional requirements of this recipe only; `bloomery doctor` checks what every run needs.

    Raises:
        EngineMissing: a later stage would fail because a program, a counter or a GPU is missing.
    """
    from bloomery.tasks.infrastructure.settings import settings

    require_device(recipe.compression.serving_device)
    if "litert" in recipe.compression.extra_formats:
        from bloomery.models.export.litert_exporter import require_litert

        require_litert(settings().litert_python)
    if recipe.budget.objective.energy:
        from bloomery.models.profiling.rapl import open_energy_counter

        open_energy_counter()
