"""What a recipe asks of the machine that it runs on, looked for before anything is computed."""

from __future__ import annotations

from bloomery.flows.recipe.recipe import Recipe


def require_machine(recipe: Recipe) -> None:
    """Only what few recipes ask for: what every run needs is told by `bloomery doctor`.

    Raises:
        EngineMissing: a stage would fail for want of something that is not here, hours later perhaps.
    """
    from bloomery.tasks.infrastructure.settings import settings

    if "litert" in recipe.compression.also:
        from bloomery.models.export.litert_exporter import require_litert

        require_litert(settings().litert_python)
    if recipe.budget.objective.energy:
        from bloomery.models.profiling.rapl import open_energy_counter

        open_energy_counter()
