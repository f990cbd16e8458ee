"""What `bloomery show` says of versions."""

from datetime import timedelta
from pathlib import Path

from data_contracts.approval import Approval
from flows import show
from tasks import approvals, promotions, registry, tracking


def test_a_version_for_which_nobody_decided_in_time_is_shown_as_refused(home: Path) -> None:
    client = tracking.client()
    client.create_registered_model("digits")
    version = client.create_model_version("digits", source=str(home), tags={registry.BENTO: "digits:abc"})
    approvals.ask(version, Approval(timeout=timedelta(0)), None)
    assert registry.versions("digits")[0].tags["release"].startswith("waits for approval until")
    for _ in range(2):
        (shown,) = show.versions("digits")["versions"]
        assert shown["release"].startswith("refused: nobody decided within")
    (refusal,) = promotions.history("digits")
    assert (refusal.action, refusal.by, refusal.version) == ("refuse", "nobody", 1)
