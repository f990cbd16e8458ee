"""A recipe is read once for each flow run."""

from typing import Any

import pytest

from bloomery.flows.recipe import handover
from bloomery.flows.recipe.recipe import Recipe, read_recipe


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The arguments of every call of `read_recipe`."""
    calls: list[tuple[Any, ...]] = []

    def read(*arguments: Any) -> Recipe:
        calls.append(arguments)
        return read_recipe(*arguments)

    monkeypatch.setattr(handover, "read_recipe", read)
    handover._LOADED.set(None)
    return calls


def test_the_name_and_the_body_of_a_flow_run_share_one_read_and_the_next_run_reads_again(
    reads: list[tuple[Any, ...]],
) -> None:
    loaded = handover.recipe_for_run("digits")
    assert handover.take_recipe("digits") is loaded
    assert len(reads) == 1
    assert handover.take_recipe("digits").recipe == loaded.recipe
    assert len(reads) == 2


def test_a_recipe_that_is_handed_over_is_not_read_again(reads: list[tuple[Any, ...]]) -> None:
    recipe = read_recipe("digits")
    handover.hand_over("digits", None, recipe)
    assert handover.take_recipe("digits").recipe is recipe
    assert reads == []


def test_other_parameters_get_a_recipe_of_their_own(reads: list[tuple[Any, ...]]) -> None:
    handover.hand_over("digits", None, read_recipe("digits"))
    overrides = {"training": {"epochs": 3}}
    assert handover.take_recipe("digits", None, overrides).recipe.training.epochs == 3
    assert reads == [("digits", None, overrides)]
