"""What a recipe asks of the machine that it runs on, looked for before anything is computed."""

from __future__ import annotations

from flows.recipe import Recipe


def require_machine(recipe: Recipe) -> None:
    """Only what few recipes ask for: what every run needs is told by `bloomery doctor`.

    Raises:
        EngineMissing: a stage would fail for want of something that is not here, hours later perhaps.
    """
    from tasks.settings import settings

    if "litert" in recipe.compression.also:
        from models.compression.litert import require_litert

        require_litert(settings().litert_python)
    if recipe.budget.objective.energy:
        from models.compression.energy_counter import energy_counter

        energy_counter()
