"""Fixtures for the tests of the stage `choose`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bloomery.data_contracts.records.records import Candidate, Candidates, Release
from tests.tasks.choose.candidates import CandidateFields, MakeCandidates


@pytest.fixture
def make_candidates(release: Release, candidate_of: Callable[..., Candidate]) -> MakeCandidates:
    """Makes the record of a compress stage with the given candidates; the first one is the baseline."""

    def make(*candidates: CandidateFields) -> Candidates:
        records = tuple(candidate_of(**fields) for fields in candidates)
        return release.bento.choice.candidates.model_copy(update={"candidates": records, "baseline": records[0].name})

    return make
