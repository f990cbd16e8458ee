"""The look-up of a run's stored outputs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bloomery.data_contracts.records.records import Release
from bloomery.flows.execution.dry_run import dry_run
from bloomery.flows.recipe.recipe import read_recipe

STAGES = ("ingest", "validate", "prepare", "train", "compress", "choose", "package", "promote")


def test_a_release_that_is_found_has_the_candidates_of_this_run(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recipe has changed since, and the same file was chosen, so an earlier run has stored bento and release."""
    choice = release.bento.choice.model_copy(update={"verdicts": ()})
    records: dict[str, Any] = {name: SimpleNamespace(digest=name) for name in STAGES}
    records |= {"choose": choice, "package": release.bento, "promote": release}
    stages = [SimpleNamespace(name=name, lookup=lambda *_, record=record: record) for name, record in records.items()]
    monkeypatch.setattr("bloomery.flows.stages.STAGES", stages)
    monkeypatch.setattr("bloomery.tasks.ingest.stage.locate_source", lambda *_: None)
    found = dry_run(read_recipe("digits")).release
    assert found is not None
    assert (found.version, found.bento.tag) == (release.version, release.bento.tag)
    assert found.bento.choice == choice != release.bento.choice
