"""Descriptions of versions in the registry: the comparison with the champion, and the owner."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bloomery.data_contracts.records.records import Interval, Release
from bloomery.tasks.registry import version_description


def test_a_version_is_compared_with_the_previous_champion(release: Release) -> None:
    former: Any = SimpleNamespace(version="2", tags={"bento": "digits:abc", "size_bytes": "4", "p50_ms": "2.5"})
    degradation = Interval(value=-0.002, low=-0.005, high=0.001)
    assert version_description._compare_with_champion(release.bento, former, degradation) == (
        "Against version 2, the champion when this one was registered: −75% size, 2.5x as fast (each measured in its "
        "own run), +0.20 points of accuracy [−0.10, +0.50]."
    )
    assert version_description._format_gain("regression", degradation) == "−0.20% RMSE [−0.50, +0.10]"  # less is better
    assert version_description._format_gain("classification", Interval(value=0.0, low=-1e-9, high=0.0)).startswith(
        "+0.00 points"
    )
    unknown: Any = SimpleNamespace(version="1", tags={})
    assert "not comparable" in version_description._compare_with_champion(release.bento, unknown, None)


@pytest.mark.parametrize(
    ("team", "owner"),
    [
        (None, None),
        ([{"username": "ada", "role": "Owner"}, {"username": "bob"}], "ada"),
        ([{"username": "ada"}, {"name": "Bob"}], "ada, Bob"),
        ({"name": "digits", "members": [{"username": "ada"}]}, "digits"),
        ("nobody", None),
    ],
)
def test_the_owner_comes_from_the_team_of_the_contract(team: Any, owner: str | None) -> None:
    contract: Any = SimpleNamespace(team=team)
    assert version_description.owner_of(contract) == owner
