"""What `bloomery show` says of versions."""

from datetime import timedelta
from pathlib import Path

import pytest

from data_contracts.approval import Approval
from flows import show
from tasks import approvals, promotions, registry, tracking


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_version_for_which_nobody_decided_in_time_is_shown_as_refused(is_marked: bool, home: Path) -> None:
    """Also where the process that asked was killed before it had marked the version as one that waits."""
    client = tracking.client()
    client.create_registered_model("digits")
    version = client.create_model_version("digits", source=str(home), tags={registry.BENTO: "digits:abc"})
    approvals.ask(version, Approval(timeout=timedelta(0)), None)
    assert registry.versions("digits")[0].tags["release"].startswith("waits for approval until")
    if not is_marked:
        client.delete_model_version_tag("digits", version.version, "release")
    for _ in range(2):
        (shown,) = show.versions("digits")["versions"]
        assert shown["release"].startswith("refused: nobody decided within")
    (refusal,) = promotions.history("digits")
    assert (refusal.action, refusal.by, refusal.version) == ("refuse", "nobody", 1)
