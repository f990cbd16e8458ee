"""Output of `bloomery show`."""

import io
from datetime import timedelta
from pathlib import Path

import pytest
from rich.console import Console

from bloomery.data_contracts.recipe_sections.approval import Approval
from bloomery.data_contracts.records.records import ClassRecall, Release
from bloomery.flows.cli.commands import show
from bloomery.tasks.registry import approvals, champion, model_registry
from bloomery.tasks.tracking import mlflow_runs


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_version_whose_approval_expired_is_shown_as_refused(is_marked: bool, home: Path) -> None:
    """Also if the process that asked was killed before it marked the version as waiting."""
    client = mlflow_runs.client()
    client.create_registered_model("digits")
    version = client.create_model_version("digits", source=str(home), tags={model_registry.BENTO: "digits:abc"})
    approvals.request_approval(version, Approval(timeout=timedelta(0)), None)
    assert model_registry.list_versions("digits")[0].tags["release"].startswith("waits for approval until")
    if not is_marked:
        client.delete_model_version_tag("digits", version.version, "release")
    for _ in range(2):
        (document,) = show.versions_document("digits")["versions"]
        assert document["release"].startswith("refused: nobody decided within")
    (refusal,) = champion.promotion_history("digits")
    assert (refusal.action, refusal.by, refusal.version) == ("refuse", "nobody", 1)


def test_versions_can_be_read_and_copied_in_a_terminal_of_80_columns() -> None:
    facts = {"version": 2, "aliases": ["champion"], "release": "promoted\nby a run", "created": "2026-11-28T00:36:02Z"}
    description = "int8: [accuracy] 98.8%\n\n[Model card](#/experiments/1/card.html) · bento `digits:393d05862ebd2aab`"
    document = {**facts, "bento": "digits:393d05862ebd2aab", "freed": None, "description": description}
    console = Console(file=io.StringIO(), width=80)
    console.print(show.versions_tree({"name": "digits", "versions": [document]}))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "version 2 (champion)" in output
    assert "digits:393d05862ebd2aab" in output
    assert "int8: [accuracy] 98.8%" in output
    assert "Model card" not in output
    assert show._description(document).endswith("Model card · bento `digits:393d05862ebd2aab`")


FACTS = {
    "name": "digits",
    "version": 2,
    "aliases": ["champion"],
    "created": "2026-11-28T00:36:02Z",
    "freed": None,
    "bento": "digits:393d05862ebd2aab",
    "release": "promoted",
    "promotions": ["2026-11-28 run by ann@host: [better]"],
    "tags": {
        "score": "98.80%",
        "size_bytes": "1234",
        "p50_ms": "0.05",
        "data.source": "sklearn:digits",
        "contract": "d 1",
    },
}


def test_the_summary_of_a_version_has_what_a_person_asks_for(release: Release) -> None:
    counts = {"num_rows": 40, "num_right": 37, "num_compared": 60, "num_lost": 0, "num_gained": 0}
    choice = release.bento.choice
    candidate = choice.candidate.model_copy(
        update={"recalls": (ClassRecall(name="one", **counts),), "size_bytes": 12_345}
    )
    choice = choice.model_copy(update={"candidate": candidate})
    document = {**FACTS, "summary": show.summarize_version(FACTS, choice)}
    console = Console(file=io.StringIO(), width=160)
    console.print(show.version_summary(document))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    for words in (
        *("digits version 2 (champion)", "accuracy 50.0% (40.0–60.0) on 358 held-out rows"),
        *("92.5%: 37 of 40 held-out rows of the class one", "12.3 kB (int8)", "1,000 µs for one row (p50)"),
        *("sklearn:digits", "1,253 for training", "7 quarantined", "d 1", "2026-11-28T00:36:02Z"),
        *("run by ann@host: [better]", "digits:393d05862ebd2aab"),
    ):
        assert words in output, output
    assert len(output.splitlines()) < 14


def test_the_summary_of_a_version_without_its_bento_has_what_the_registry_knows() -> None:
    summary = show.summarize_version(FACTS, None)
    assert (summary["score"], summary["size"], summary["data"]) == ("98.80%", "1234 bytes", "sklearn:digits")
    assert "weakest class" not in summary


def test_a_version_that_was_rolled_back_is_not_shown_as_promoted() -> None:
    facts = {**FACTS, "aliases": [], "release": "rolled back: too many [false] alarms\n…"}
    summary = show.summarize_version(facts, None)
    assert summary["promoted"] == "2026-11-28 run by ann@host: [better]; rolled back: too many [false] alarms"
    assert show.summarize_version(FACTS, None)["promoted"] == "2026-11-28 run by ann@host: [better]"
    refused = {**FACTS, "promotions": [], "release": "refused: too slow"}
    assert show.summarize_version(refused, None)["promoted"] == "refused: too slow"


def test_words_in_brackets_are_shown_with_all_facts() -> None:
    """They are no markup: a reason, a path or the name of a class may have them."""
    lineage = [{"stage": "ingest", "digest": "a" * 64, "description": "rows of data/[ab]*.csv"}]
    document = {
        **FACTS,
        "description": "int8",
        "metrics": {"recall.[x]": 0.5},
        "lineage": lineage,
        "promotions": ["promote by ann: [wip] [/retry]"],
        "tags": {"release": "refused: recall of [/other] is 10%"},
    }
    console = Console(file=io.StringIO(), width=160)
    console.print(show.version_tree(document))
    output = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("data/[ab]*.csv", "recall.[x] 0.5", "[wip] [/retry]", "recall of [/other] is 10%"):
        assert words in output
