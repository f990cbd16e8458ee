"""The task `promote` of a flow run, with and without an approval."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from bloomery.data_contracts.recipe_sections.approval import PromotionTerms
from bloomery.data_contracts.records.records import Release
from bloomery.flows.run_control import approval_wait
from bloomery.models.evaluation.gates import Gates


def test_a_release_that_is_found_has_the_candidates_of_this_run(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other candidates were built, the same one was chosen, so its bento and its release are found."""
    monkeypatch.setattr(approval_wait, "promote", SimpleNamespace(as_task=lambda *_: release))
    choice = release.bento.choice
    options = choice.candidates.model_copy(update={"candidates": choice.candidates.candidates[:1]})
    bento = release.bento.model_copy(update={"choice": choice.model_copy(update={"candidates": options})})
    result = approval_wait.promote_when_approved(bento, Gates(), PromotionTerms())
    assert (result.version, result.bento) == (release.version, bento)
    assert release.bento != bento
